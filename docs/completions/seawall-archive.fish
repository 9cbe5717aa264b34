complete -c seawall-archive -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall-archive -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall-archive -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall-archive -l work-ahead -d 'Archive what is ready behind this file, not the file itself'
complete -c seawall-archive -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall-archive -s V -l version -d 'Print version'
