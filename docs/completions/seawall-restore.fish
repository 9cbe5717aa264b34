complete -c seawall-restore -l config -d 'The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]' -r -F
complete -c seawall-restore -l cluster -d 'The cluster, where the configuration has several' -r
complete -c seawall-restore -l log-level -d 'What to log: error, warn, info, debug, trace' -r
complete -c seawall-restore -l to -d 'The data directory to write: empty, or not there yet, but for --delta and --force' -r -F
complete -c seawall-restore -l time -d 'Recover to this time, such as \'2026-11-20 11:09:25+00\'' -r
complete -c seawall-restore -l lsn -d 'Recover to this position, such as 16/B374D848' -r
complete -c seawall-restore -l xid -d 'Recover to the end of this transaction' -r
complete -c seawall-restore -l name -d 'Recover to this restore point' -r
complete -c seawall-restore -l timeline -d 'Follow this timeline [default: the newest]' -r
complete -c seawall-restore -l backup -d 'Start from this backup [default: the newest that leads to the target]' -r
complete -c seawall-restore -l action -d 'What the server does at the target [default: pause]' -r -f -a "pause\t'Wait, open for reading, until someone decides'
promote\t'Open for writing'
shutdown\t'Stop'"
complete -c seawall-restore -l primary-conninfo -d 'How the standby reaches its primary: primary_conninfo, without a password' -r
complete -c seawall-restore -l slot -d 'The replication slot of the primary that the standby uses: primary_slot_name' -r
complete -c seawall-restore -l repository -d 'The repository to restore from [default: the first]' -r
complete -c seawall-restore -l tablespace -d 'Put the tablespace that lay at OLD into NEW; may be repeated' -r
complete -c seawall-restore -l tablespaces-under -d 'Put every tablespace into a directory of its own below DIR, named by its oid' -r -F
complete -c seawall-restore -l only-database -d 'Restore this database (name or oid) and those of initdb; the others become files of zeros, which can only be dropped; may be repeated' -r
complete -c seawall-restore -l waldir -d 'Put pg_wal there, behind a symbolic link' -r -F
complete -c seawall-restore -l archive -d 'What the restored cluster does about archiving' -r -f -a "hold\t'archive_mode stays on, with a command that fails until someone releases it'
off\t'archive_mode is off'
on\t'As the source did'"
complete -c seawall-restore -l immediate -d 'Recover no further than to where the backup is consistent'
complete -c seawall-restore -l end-at-gap -d 'End recovery where a segment is missing, though later ones are there'
complete -c seawall-restore -l exclusive -d 'Stop just before the target instead of just after it'
complete -c seawall-restore -l standby -d 'Make a standby, which follows the newest timeline, or that of --timeline, and stops nowhere'
complete -c seawall-restore -l force -d 'Replace a cluster that lies in the target and is not running'
complete -c seawall-restore -l delta -d 'Bring a cluster that lies in the target and is not running to the backup\'s state: rewrite only what differs, remove what does not belong there'
complete -c seawall-restore -l json -d 'Print what was done as JSON'
complete -c seawall-restore -s h -l help -d 'Print help (see more with \'--help\')'
complete -c seawall-restore -s V -l version -d 'Print version'
