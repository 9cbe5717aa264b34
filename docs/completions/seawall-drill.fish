# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_seawall_drill_global_optspecs
    string join \n config= cluster= log-level= time= lsn= xid= name= immediate timeline= backup= end-at-gap random-time seed= exclusive scenario= sql= database= repository= scratch= report= failed-at= measure-loss trigger= processors= memory= disk= keep json h/help V/version
end

function __fish_seawall_drill_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_seawall_drill_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_seawall_drill_using_subcommand
    set -l cmd (__fish_seawall_drill_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l time -d 'Recover to this time, such as \'2026-11-20 11:09:25+00\'' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l lsn -d 'Recover to this position, such as 16/B374D848' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l xid -d 'Recover to the end of this transaction' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l name -d 'Recover to this restore point' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l timeline -d 'Follow this timeline [default: the newest]' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l backup -d 'Start from this backup [default: the newest that leads to the target]' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l seed -d 'Draw the same moment as a drill before, which printed this number' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l scenario -d 'What is played through' -r -f -a "restore\t'The database is restored, as it would be on any day'
total-loss\t'The primary, its disks and its network are gone: the drill is kept away from them'
rehearsal\t'A migration is tried on the restored copy, and each statement measured'"
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l sql -d 'The migration to rehearse: SQL statements, as psql would run them' -r -F
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l database -d 'The database that it changes [default: the only one, or postgres]' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l repository -d 'The repository to restore from [default: the first]' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l scratch -d 'Where the scratch instance is made, in a directory of its own [default: drill.scratch, then the system\'s temporary directory]' -r -F
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l report -d 'Write report.html, report.json, report.md and report.xml (JUnit) into this directory' -r -F
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l failed-at -d 'The moment of failure that the RPO is measured from [default: now]' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l trigger -d 'What or who ordered this drill, for the report' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l processors -d 'Use so many processors' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l memory -d 'Use about so much memory' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l disk -d 'Let the scratch directory grow to this' -r
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l immediate -d 'Recover no further than to where the backup is consistent'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l end-at-gap -d 'End recovery where a segment is missing, though later ones are there'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l random-time -d 'Recover to a moment drawn from those that retention promises'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l exclusive -d 'Stop just before the target instead of just after it'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l measure-loss -d 'Ask the primary first how far it has come, so that bytes and transactions that would be lost are exact'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l keep -d 'Leave the scratch instance running, and say how to reach and end it'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -l json -d 'Print the report as JSON instead of text'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -s V -l version -d 'Print version'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -f -a "history" -d 'Past drills: verdicts, and the trend of RPO and RTO against the objectives'
complete -c seawall-drill -n "__fish_seawall_drill_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l repository -d 'The repository that holds the results [default: the first]' -r
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l last -d 'The newest so many' -r
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -l json -d 'Print as JSON'
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand history" -s h -l help -d 'Print help'
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand help; and not __fish_seen_subcommand_from history help" -f -a "history" -d 'Past drills: verdicts, and the trend of RPO and RTO against the objectives'
complete -c seawall-drill -n "__fish_seawall_drill_using_subcommand help; and not __fish_seen_subcommand_from history help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
