# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_seawall_global_optspecs
    string join \n h/help V/version
end

function __fish_seawall_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_seawall_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_seawall_using_subcommand
    set -l cmd (__fish_seawall_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c seawall -n "__fish_seawall_needs_command" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_needs_command" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "init" -d 'Make the repositories, check the server\'s settings, print what postgresql.conf lacks'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "check" -d 'Examine settings, archiving, gaps, stores, clock, and say what to do about each finding'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "backup" -d 'Take a base backup'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "status" -d 'Show up to which moment one can recover, what waits, what is missing, what was proven'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "list" -d 'Show backups, WAL, gaps, restore points and what one can recover to'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "copy" -d 'Bring repositories that are copies what their sources hold, once or continuously'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "expire" -d 'Delete backups and WAL that no rule keeps; or say what would go, and why the rest stays'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "merge" -d 'Make a full backup out of a chain of incremental ones, inside the repository'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "pin" -d 'Keep a backup whatever the rules say'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "unpin" -d 'Leave a backup to the rules again'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "restore-point" -d 'Make a named restore point and record it'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "restore" -d 'Write a data directory that is ready to start (runs seawall-restore)'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "drill" -d 'Restore into a scratch instance, measure, verify, report (runs seawall-drill)'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "daemon" -d 'Do everything on its schedule, for all clusters, until it is stopped'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "schedule" -d 'Show the next runs of everything, and what came of the last ones'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "heartbeat" -d 'Write a tiny message into the WAL, so that the newest recoverable moment is known'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "verify" -d 'Read and check stored base backups, without PostgreSQL'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "wal" -d 'Verify archived WAL, and settle conflicts in it'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "archive" -d 'Archive one WAL file (runs seawall-archive)'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "fetch" -d 'Fetch one WAL file (runs seawall-fetch)'
complete -c seawall -n "__fish_seawall_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand init" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand init" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand init" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand init" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand init" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand check" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand check" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand check" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand check" -l timeout -d 'How long to wait for the switched segment' -r
complete -c seawall -n "__fish_seawall_using_subcommand check" -l json -d 'Print the findings as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand check" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand check" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l kind -d 'The kind of backup' -r -f -a "full\t'Every file whole'
incremental\t'What changed since the last backup; a full one where there is none to build upon'"
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l parent -d 'The backup that an incremental one is taken on top of [default: the newest that fits]' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l repository -d 'The repository to write to [default: the first that is no copy of another]' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l jobs -d 'Threads that read and compress, and packs that are uploaded at once [default: backup.jobs]' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l bandwidth -d 'How much goes to the repository each second at most, `50MB` say [default: backup.bandwidth]' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l wal-timeout -d 'How long to wait for the backup\'s own WAL [default: backup.wal_timeout]' -r
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l spread-checkpoint -d 'Wait for PostgreSQL\'s next checkpoint instead of asking for one at once'
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l no-resume -d 'Compress and upload everything anew, whatever an interrupted backup has stored'
complete -c seawall -n "__fish_seawall_using_subcommand backup" -l json -d 'Print the backup\'s marker as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand backup" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall -n "__fish_seawall_using_subcommand backup" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand status" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand status" -l cluster -d 'One cluster only [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand status" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand status" -l follow -d 'Look again and again, every daemon.look_every, and print each look as one line of JSON'
complete -c seawall -n "__fish_seawall_using_subcommand status" -l json -d 'Print JSON'
complete -c seawall -n "__fish_seawall_using_subcommand status" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand status" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand list" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand list" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand list" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand list" -l repository -d 'A repository; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand list" -l scan -d 'Read all archived WAL for restore points, of whoever\'s making, and record those that are not recorded yet. Takes as long as fetching and decompressing all of it'
complete -c seawall -n "__fish_seawall_using_subcommand list" -l json -d 'Print it as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand list" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand list" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l repository -d 'A repository to fill; may be repeated [default: all that have copy_from]' -r
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l interval -d 'How often new WAL is looked for' -r
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l jobs -d 'Objects that are copied at once [default: the processors, at most 4]' -r
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l follow -d 'Go on until SIGTERM or Ctrl-C, and wait where a store is away'
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l dry-run -d 'Only say what the copies lack'
complete -c seawall -n "__fish_seawall_using_subcommand copy" -l json -d 'Print what was done, and what is lacking, as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand copy" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand copy" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l repository -d 'A repository; may be repeated [default: all that have rules]' -r
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l dry-run -d 'Only say what would go and, of what stays, why; nothing is written'
complete -c seawall -n "__fish_seawall_using_subcommand expire" -l json -d 'Print it as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand expire" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand expire" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand merge" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand merge" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand merge" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand merge" -l repository -d 'The repository [default: the first that holds the backup]' -r
complete -c seawall -n "__fish_seawall_using_subcommand merge" -l json -d 'Print what was made as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand merge" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand merge" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l repository -d 'A repository; may be repeated [default: all that hold the backup]' -r
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l reason -d 'Why it stays, for those who see it in a year' -r
complete -c seawall -n "__fish_seawall_using_subcommand pin" -l until -d 'Until when, such as 2027-01-31T00:00:00Z [default: until it is unpinned]' -r
complete -c seawall -n "__fish_seawall_using_subcommand pin" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand pin" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -l repository -d 'A repository; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand unpin" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l timeout -d 'How long to wait [default: 10m]' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l repository -d 'A repository to wait for; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l wait -d 'Switch the segment, and wait until the point can be recovered to'
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -l json -d 'Print the restore point as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand restore-point" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l to -d 'The data directory to write: empty, or not there yet, but for --delta and --force' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l time -d 'Recover to this time, such as \'2026-11-20 11:09:25+00\'' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l lsn -d 'Recover to this position, such as 16/B374D848' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l xid -d 'Recover to the end of this transaction' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l name -d 'Recover to this restore point' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l timeline -d 'Follow this timeline [default: the newest]' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l backup -d 'Start from this backup [default: the newest that leads to the target]' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l action -d 'What the server does at the target [default: pause]' -r -f -a "pause\t'Wait, open for reading, until someone decides'
promote\t'Open for writing'
shutdown\t'Stop'"
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l primary-conninfo -d 'How the standby reaches its primary: primary_conninfo, without a password' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l slot -d 'The replication slot of the primary that the standby uses: primary_slot_name' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l repository -d 'The repository to restore from [default: the first]' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l tablespace -d 'Put the tablespace that lay at OLD into NEW; may be repeated' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l tablespaces-under -d 'Put every tablespace into a directory of its own below DIR, named by its oid' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l only-database -d 'Restore this database (name or oid) and those of initdb; the others become files of zeros, which can only be dropped; may be repeated' -r
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l waldir -d 'Put pg_wal there, behind a symbolic link' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l archive -d 'What the restored cluster does about archiving' -r -f -a "hold\t'archive_mode stays on, with a command that fails until someone releases it'
off\t'archive_mode is off'
on\t'As the source did'"
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l immediate -d 'Recover no further than to where the backup is consistent'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l end-at-gap -d 'End recovery where a segment is missing, though later ones are there'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l exclusive -d 'Stop just before the target instead of just after it'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l standby -d 'Make a standby, which follows the newest timeline, or that of --timeline, and stops nowhere'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l force -d 'Replace a cluster that lies in the target and is not running'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l delta -d 'Bring a cluster that lies in the target and is not running to the backup\'s state: rewrite only what differs, remove what does not belong there'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -l json -d 'Print what was done as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall -n "__fish_seawall_using_subcommand restore" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l time -d 'Recover to this time, such as \'2026-11-20 11:09:25+00\'' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l lsn -d 'Recover to this position, such as 16/B374D848' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l xid -d 'Recover to the end of this transaction' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l name -d 'Recover to this restore point' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l timeline -d 'Follow this timeline [default: the newest]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l backup -d 'Start from this backup [default: the newest that leads to the target]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l seed -d 'Draw the same moment as a drill before, which printed this number' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l scenario -d 'What is played through' -r -f -a "restore\t'The database is restored, as it would be on any day'
total-loss\t'The primary, its disks and its network are gone: the drill is kept away from them'
rehearsal\t'A migration is tried on the restored copy, and each statement measured'"
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l sql -d 'The migration to rehearse: SQL statements, as psql would run them' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l database -d 'The database that it changes [default: the only one, or postgres]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l repository -d 'The repository to restore from [default: the first]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l scratch -d 'Where the scratch instance is made, in a directory of its own [default: drill.scratch, then the system\'s temporary directory]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l report -d 'Write report.html, report.json, report.md and report.xml (JUnit) into this directory' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l failed-at -d 'The moment of failure that the RPO is measured from [default: now]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l trigger -d 'What or who ordered this drill, for the report' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l processors -d 'Use so many processors' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l memory -d 'Use about so much memory' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l disk -d 'Let the scratch directory grow to this' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l immediate -d 'Recover no further than to where the backup is consistent'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l end-at-gap -d 'End recovery where a segment is missing, though later ones are there'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l random-time -d 'Recover to a moment drawn from those that retention promises'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l exclusive -d 'Stop just before the target instead of just after it'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l measure-loss -d 'Ask the primary first how far it has come, so that bytes and transactions that would be lost are exact'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l keep -d 'Leave the scratch instance running, and say how to reach and end it'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -l json -d 'Print the report as JSON instead of text'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -f -a "history" -d 'Past drills: verdicts, and the trend of RPO and RTO against the objectives'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and not __fish_seen_subcommand_from history help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l repository -d 'The repository that holds the results [default: the first]' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l last -d 'The newest so many' -r
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -l json -d 'Print as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from history" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from help" -f -a "history" -d 'Past drills: verdicts, and the trend of RPO and RTO against the objectives'
complete -c seawall -n "__fish_seawall_using_subcommand drill; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand daemon" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand daemon" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand daemon" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand daemon" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -l cluster -d 'One cluster only [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -l count -d 'How many of the next runs to show' -r
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -l json -d 'Print JSON'
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand schedule" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -l follow -d 'Go on for ever at heartbeat.interval, and switch segments where objectives.rpo would otherwise be missed'
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -l json -d 'Print where the message is as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand heartbeat" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l repository -d 'A repository; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l jobs -d 'How many objects are read at once [default: the processors, at most 8]' -r
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l quick -d 'Look only whether everything is there with its size; nothing but indexes is read'
complete -c seawall -n "__fish_seawall_using_subcommand verify" -l json -d 'Print the findings as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand verify" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand verify" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and not __fish_seen_subcommand_from verify resolve help" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and not __fish_seen_subcommand_from verify resolve help" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and not __fish_seen_subcommand_from verify resolve help" -f -a "verify" -d 'Read and check every stored WAL object, and whether the segments go on from each other'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and not __fish_seen_subcommand_from verify resolve help" -f -a "resolve" -d 'Show files that are archived with different contents, and settle which is right'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and not __fish_seen_subcommand_from verify resolve help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l repository -d 'A repository; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l timeline -d 'Verify this timeline only' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l from -d 'Begin with this segment; older timelines come first' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l jobs -d 'How many objects are read at once [default: the processors, at most 8]' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l resume -d 'Keep the progress in this file, and go on from it where it is there' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -l json -d 'Print the findings as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from verify" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l repository -d 'A repository; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l keep -d 'Keep the content with this digest, or its first digits, and set the others of its file aside; may be repeated' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l keep-from -d 'Keep what lies in pg_wal of this data directory, that of the right server: of each file in conflict, and of those that wait there while another server\'s are stored' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l set-aside -d 'Set the content with this digest aside even if its file has no other: it belongs to a branch that lost' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l file -d 'The file that --keep or --set-aside means' -r
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l branch -d 'With --keep: settle the neighbouring files as well, as far as their records tell which of them belong to the same branch'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l dry-run -d 'Only say what would be done'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -l json -d 'Print it as JSON'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from resolve" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Read and check every stored WAL object, and whether the segments go on from each other'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from help" -f -a "resolve" -d 'Show files that are archived with different contents, and settle which is right'
complete -c seawall -n "__fish_seawall_using_subcommand wal; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand archive" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand archive" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand archive" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand archive" -l work-ahead -d 'Archive what is ready behind this file, not the file itself'
complete -c seawall -n "__fish_seawall_using_subcommand archive" -s h -l help -d 'Print help'
complete -c seawall -n "__fish_seawall_using_subcommand archive" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l repository -d 'A repository to ask, in this order; may be repeated [default: all]' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l left -d 'Deliver nothing of this timeline from there on: recovery leaves it for another; may be repeated' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l timeline -d 'The timeline that recovery ends on; without it the newest is assumed, and a segment that is missing before a later timeline begins is a gap' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l jobs -d 'Fetch at most so many segments at once [default: fetch.jobs]' -r
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l new-tablespaces -d 'What to do with WAL that creates a tablespace outside the data directory' -r -f -a "allow\t'Deliver it'
unused\t'Deliver it where nothing lies at that place yet, or the link to it is there already'
refuse\t'Never deliver it'"
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l strict -d 'Return 200 on a standby, too, where a doubt remains'
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l end-at-gap -d 'Let recovery end where a segment is missing though later ones are there'
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -l prefetch -d 'Be the worker that fetches ahead: for this program alone'
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall -n "__fish_seawall_using_subcommand fetch" -s V -l version -d 'Print version'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "init" -d 'Make the repositories, check the server\'s settings, print what postgresql.conf lacks'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "check" -d 'Examine settings, archiving, gaps, stores, clock, and say what to do about each finding'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "backup" -d 'Take a base backup'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "status" -d 'Show up to which moment one can recover, what waits, what is missing, what was proven'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "list" -d 'Show backups, WAL, gaps, restore points and what one can recover to'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "copy" -d 'Bring repositories that are copies what their sources hold, once or continuously'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "expire" -d 'Delete backups and WAL that no rule keeps; or say what would go, and why the rest stays'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "merge" -d 'Make a full backup out of a chain of incremental ones, inside the repository'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "pin" -d 'Keep a backup whatever the rules say'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "unpin" -d 'Leave a backup to the rules again'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "restore-point" -d 'Make a named restore point and record it'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "restore" -d 'Write a data directory that is ready to start (runs seawall-restore)'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "drill" -d 'Restore into a scratch instance, measure, verify, report (runs seawall-drill)'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "daemon" -d 'Do everything on its schedule, for all clusters, until it is stopped'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "schedule" -d 'Show the next runs of everything, and what came of the last ones'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "heartbeat" -d 'Write a tiny message into the WAL, so that the newest recoverable moment is known'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "verify" -d 'Read and check stored base backups, without PostgreSQL'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "wal" -d 'Verify archived WAL, and settle conflicts in it'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "archive" -d 'Archive one WAL file (runs seawall-archive)'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "fetch" -d 'Fetch one WAL file (runs seawall-fetch)'
complete -c seawall -n "__fish_seawall_using_subcommand help; and not __fish_seen_subcommand_from init check backup status list copy expire merge pin unpin restore-point restore drill daemon schedule heartbeat verify wal archive fetch help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c seawall -n "__fish_seawall_using_subcommand help; and __fish_seen_subcommand_from drill" -f -a "history" -d 'Past drills: verdicts, and the trend of RPO and RTO against the objectives'
complete -c seawall -n "__fish_seawall_using_subcommand help; and __fish_seen_subcommand_from wal" -f -a "verify" -d 'Read and check every stored WAL object, and whether the segments go on from each other'
complete -c seawall -n "__fish_seawall_using_subcommand help; and __fish_seen_subcommand_from wal" -f -a "resolve" -d 'Show files that are archived with different contents, and settle which is right'
