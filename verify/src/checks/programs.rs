//! PostgreSQL's own programs over the files of the restored directory.

use std::path::Path;
use std::time::Instant;

use seawall::error::Result;

use super::Check;
use crate::evidence::Evidence;
use crate::programs::Programs;

/// `pg_verifybackup -n` of the restored directory, before the server starts.
pub async fn verify_backup(programs: &Programs, data: &Path, evidence: &Evidence) -> Result<Check> {
    const NAME: &str = "pg_verifybackup -n";
    let Some(program) = programs.get("pg_verifybackup") else {
        return Ok(Check::not_tested(NAME, programs.missing("pg_verifybackup")));
    };
    let started = Instant::now();
    let data = data.to_string_lossy();
    let ran = evidence.run(&program, &["-n", "-q", &data]).await?;
    let well = "every file is there, with its size and CRC-32C";
    Ok(Check {
        // It compares the files with what the backup says of itself, as the restore did.
        proves: false,
        ..Check::of_run(NAME, &ran, well, started)
    })
}

/// `pg_checksums --check` of the stopped instance.
pub async fn page_checksums(
    programs: &Programs,
    data: &Path,
    enabled: bool,
    evidence: &Evidence,
) -> Result<Check> {
    const NAME: &str = "page checksums";
    if !enabled {
        return Ok(Check::not_tested(
            NAME,
            "the cluster has data checksums off",
        ));
    }
    let Some(program) = programs.get("pg_checksums") else {
        return Ok(Check::not_tested(NAME, programs.missing("pg_checksums")));
    };
    let started = Instant::now();
    let data = data.to_string_lossy();
    let ran = evidence.run(&program, &["--check", "-D", &data]).await?;
    let blocks = ran
        .text
        .lines()
        .find_map(|line| line.strip_prefix("Blocks scanned:"));
    let well = format!("{} blocks, none bad", blocks.map_or("all", str::trim));
    Ok(Check::of_run(NAME, &ran, &well, started))
}
