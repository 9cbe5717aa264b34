//! A real Azure Blob server: Azurite, Microsoft's own emulator.

use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use crate::config::Repository;
use crate::guard;
use crate::postgres::free_port;
use crate::process::{Run, wait_until};
use crate::scratch::Scratch;
use crate::version::cached;

/// The account and key that Azurite's documentation gives to everybody.
pub const ACCOUNT: (&str, &str) = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
);

/// A running Azurite; ended by its process id when dropped.
#[derive(Debug)]
pub struct Azurite {
    address: SocketAddr,
    server: std::process::Child,
}

impl Azurite {
    /// Starts one in `scratch`/azurite. It has no containers yet.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        let program = cached("azurite-")
            .expect("Azurite is not installed: run scripts/setup test")
            .join("node_modules/.bin/azurite-blob");
        let home = scratch.directory("azurite");
        let port = free_port();
        let log = std::fs::File::create(home.join("log")).expect("the log opens");
        let server = Run::new(program)
            .arg("--location")
            .arg(&home)
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .args(["--skipApiVersionCheck", "--disableTelemetry", "--silent"])
            .directory(&home)
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .expect("Azurite starts");
        guard::started(server.id());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until("Azurite answers", Duration::from_secs(60), || {
            TcpStream::connect(address).is_ok()
        });
        Self { address, server }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint that object_store is given: with the account in its path.
    pub fn endpoint(&self) -> String {
        format!("http://{}/{}", self.address, ACCOUNT.0)
    }

    /// A repository in a container, which must exist before it is used.
    pub fn repository(&self, name: &str, container: &str, prefix: &str) -> Repository {
        Repository::new(name, &format!("az://{container}/{prefix}"))
            .option("azure_storage_account_name", ACCOUNT.0)
            .option("azure_storage_account_key", ACCOUNT.1)
            .option("azure_storage_endpoint", &self.endpoint())
            .option("azure_allow_http", "true")
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        guard::ended(self.server.id());
    }
}
