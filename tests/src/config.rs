//! Writing `seawall.toml` for the clusters and repositories of a test.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::postgres::Cluster;
use crate::scratch::{Scratch, give_to_owner, set_mode};

/// A configuration file that was written.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    cluster: String,
}

/// A configuration file to be written.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    clusters: Vec<(String, String)>,
    repositories: Vec<Repository>,
    top: String,
    rest: String,
}

/// One repository in it.
#[derive(Debug, Clone)]
pub struct Repository {
    name: String,
    url: String,
    keys: Vec<(String, String)>,
    options: Vec<(String, String)>,
    retention: Vec<(String, String)>,
}

impl Config {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The same file, for commands about another of its clusters.
    pub fn for_cluster(&self, cluster: &str) -> Self {
        Self {
            path: self.path.clone(),
            cluster: cluster.into(),
        }
    }
}

impl ConfigFile {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a cluster under its name, with its superuser's connection.
    pub fn cluster(self, cluster: &Cluster) -> Self {
        self.cluster_as(cluster.name(), cluster, "postgres")
    }

    /// Adds a cluster under any name, connecting as `user`: as `seawall` for the role of
    /// [`Cluster::create_seawall_role`].
    pub fn cluster_as(self, name: &str, cluster: &Cluster, user: &str) -> Self {
        let connection = cluster.connection(user);
        self.cluster_at(name, cluster.data(), &connection)
    }

    /// Adds a cluster by its parts.
    pub fn cluster_at(mut self, name: &str, data: &Path, connection: &str) -> Self {
        let keys = format!(
            "data_directory = {}\nconnection = {}\n",
            quoted(&data.to_string_lossy()),
            quoted(connection)
        );
        self.clusters.push((name.into(), keys));
        self
    }

    /// Adds a cluster whose files are not on this host: backups come over the replication
    /// protocol.
    pub fn distant(mut self, name: &str, connection: &str) -> Self {
        let keys = format!("connection = {}\n", quoted(connection));
        self.clusters.push((name.into(), keys));
        self
    }

    /// A key of the cluster that was added last, with a TOML value.
    pub fn cluster_key(mut self, key: &str, toml: &str) -> Self {
        if let Some((_, keys)) = self.clusters.last_mut() {
            let _ = writeln!(keys, "{key} = {toml}");
        }
        self
    }

    /// Adds a repository.
    pub fn repository(mut self, repository: Repository) -> Self {
        self.repositories.push(repository);
        self
    }

    /// Adds a key that stands before all tables: `archive_ack = "any"`.
    pub fn top(mut self, toml: &str) -> Self {
        let _ = writeln!(self.top, "{toml}");
        self
    }

    /// Adds tables at the end: `[schedule]`, `[objectives]`.
    pub fn extra(mut self, toml: &str) -> Self {
        let _ = writeln!(self.rest, "{toml}");
        self
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut text = self.top.clone();
        for (name, keys) in &self.clusters {
            let _ = writeln!(text, "[cluster.{name}]\n{keys}");
        }
        for repository in &self.repositories {
            let _ = writeln!(
                text,
                "[[repository]]\nname = {}\nurl = {}",
                quoted(&repository.name),
                quoted(&repository.url)
            );
            for (key, value) in &repository.keys {
                let _ = writeln!(text, "{key} = {value}");
            }
            let tables = [
                ("options", &repository.options),
                ("retention", &repository.retention),
            ];
            for (table, values) in tables {
                if !values.is_empty() {
                    let _ = writeln!(text, "[repository.{table}]");
                }
                for (key, value) in values {
                    let _ = writeln!(text, "{key} = {value}");
                }
            }
            text.push('\n');
        }
        text + &self.rest
    }

    /// Writes it as `seawall.toml` in `scratch`, readable for PostgreSQL's user alone.
    #[track_caller]
    pub fn write(&self, scratch: &Scratch) -> Config {
        self.write_to(&scratch.join("seawall.toml"))
    }

    /// Writes it to any path.
    #[track_caller]
    pub fn write_to(&self, path: &Path) -> Config {
        std::fs::write(path, self.text())
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        set_mode(path, 0o600);
        give_to_owner(path);
        let cluster = self.clusters.first().map(|(name, _)| name.clone());
        Config {
            path: path.to_path_buf(),
            cluster: cluster.unwrap_or_else(|| "main".into()),
        }
    }
}

impl Repository {
    /// A repository by its URL.
    pub fn new(name: &str, url: &str) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            keys: Vec::new(),
            options: Vec::new(),
            retention: Vec::new(),
        }
    }

    /// A repository in a directory, which PostgreSQL's user must be able to write:
    /// [`Scratch::directory`] makes such a one.
    pub fn local(name: &str, directory: &Path) -> Self {
        Self::new(name, &format!("file://{}", directory.display()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A key of the `[[repository]]` table itself, with a TOML value.
    pub fn key(mut self, key: &str, toml: &str) -> Self {
        self.keys.push((key.into(), toml.into()));
        self
    }

    /// A copy target, filled from another repository.
    pub fn copy_from(self, name: &str) -> Self {
        let name = quoted(name);
        self.key("copy_from", &name)
    }

    /// A store's option: object_store's own key and a text.
    pub fn option(mut self, key: &str, value: &str) -> Self {
        self.options.push((key.into(), quoted(value)));
        self
    }

    /// A store's option with any TOML value: `{ file = "…" }`.
    pub fn option_toml(mut self, key: &str, toml: &str) -> Self {
        self.options.push((key.into(), toml.into()));
        self
    }

    /// A key of `[repository.retention]`, with a TOML value.
    pub fn retention(mut self, key: &str, toml: &str) -> Self {
        self.retention.push((key.into(), toml.into()));
        self
    }

    /// The same repository through another URL option, a proxy's endpoint say.
    pub fn through(self, key: &str, value: &str) -> Self {
        self.without(key).option(key, value)
    }

    /// The same repository without one of its options.
    pub fn without(mut self, key: &str) -> Self {
        self.options.retain(|(name, _)| name != key);
        self
    }
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    // JSON's escapes are TOML's.
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_as_the_design_shows_it() {
        let text = ConfigFile::new()
            .cluster_at("main", Path::new("/data"), "host=/run user=seawall")
            .repository(
                Repository::new("near", "s3://b/pg")
                    .option("aws_region", "garage")
                    .retention("full", "2"),
            )
            .repository(Repository::local("far", Path::new("/far")).copy_from("near"))
            .extra("[objectives]\nrpo = \"5m\"")
            .text();
        assert_eq!(
            text,
            "[cluster.main]\ndata_directory = \"/data\"\nconnection = \"host=/run user=seawall\"\n\n\
             [[repository]]\nname = \"near\"\nurl = \"s3://b/pg\"\n[repository.options]\n\
             aws_region = \"garage\"\n[repository.retention]\nfull = 2\n\n\
             [[repository]]\nname = \"far\"\nurl = \"file:///far\"\ncopy_from = \"near\"\n\n\
             [objectives]\nrpo = \"5m\"\n"
        );
    }
}
