complete -c seawall-fetch -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall-fetch -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall-fetch -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall-fetch -l repository -d 'A repository to ask, in this order; may be repeated [default: all]' -r
complete -c seawall-fetch -l left -d 'Deliver nothing of this timeline from there on: recovery leaves it for another; may be repeated' -r
complete -c seawall-fetch -l timeline -d 'The timeline that recovery ends on; without it the newest is assumed, and a segment that is missing before a later timeline begins is a gap' -r
complete -c seawall-fetch -l jobs -d 'Fetch at most so many segments at once [default: fetch.jobs]' -r
complete -c seawall-fetch -l new-tablespaces -d 'What to do with WAL that creates a tablespace outside the data directory' -r -f -a "allow\t'Deliver it'
unused\t'Deliver it where nothing lies at that place yet, or the link to it is there already'
refuse\t'Never deliver it'"
complete -c seawall-fetch -l strict -d 'Return 200 on a standby, too, where a doubt remains'
complete -c seawall-fetch -l end-at-gap -d 'Let recovery end where a segment is missing though later ones are there'
complete -c seawall-fetch -l prefetch -d 'Be the worker that fetches ahead: for this program alone'
complete -c seawall-fetch -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall-fetch -s V -l version -d 'Print version'
