//! `seawall wal`: verbs about archived WAL.

use clap::{Args, Subcommand};

use super::{Common, wal_resolve, wal_verify};
use crate::error::{Exit, Result};

/// Verify archived WAL, and settle conflicts in it
#[derive(Debug, Args)]
pub struct WalArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: WalVerb,
}

/// The verbs of `seawall wal`.
#[derive(Debug, Subcommand)]
pub enum WalVerb {
    /// Read and check every stored WAL object, and whether the segments go on from each other
    Verify(wal_verify::VerifyArgs),
    /// Show files that are archived with different contents, and settle which is right
    Resolve(wal_resolve::ResolveArgs),
}

impl WalArgs {
    /// What every command takes.
    pub fn common(&self) -> &Common {
        match &self.verb {
            WalVerb::Verify(args) => &args.common,
            WalVerb::Resolve(args) => &args.common,
        }
    }
}

/// Does it.
pub fn run(args: &WalArgs) -> Result<Exit> {
    match &args.verb {
        WalVerb::Verify(args) => wal_verify::run(args),
        WalVerb::Resolve(args) => wal_resolve::run(args),
    }
}
