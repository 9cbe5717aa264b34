//! Where a scratch directory may be made: not inside anything that belongs to a cluster, nor
//! inside the repository. Beside them it may: it is always a new directory of its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use seawall::error::{Error, IoContext, Result};
use seawall::postgres::data_directory::part_of_a_cluster;

/// Refuses a place inside a data directory, a tablespace or a WAL directory of any cluster, as
/// its content shows, inside `data_directory`, and inside a repository of local files.
///
/// It looks at the place and what lies above it, never into the cluster.
///
/// # Errors
/// Exit code 4, with nothing touched.
pub fn refuse_inside_a_cluster(
    parent: &Path,
    data_directory: Option<&Path>,
    repository_url: &str,
) -> Result<()> {
    const HINT: &str = "choose another place with --scratch or drill.scratch";
    let real = parent.canonicalize().on("find", parent)?;
    let repository = repository_url.strip_prefix("file://").map(Path::new);
    for ancestor in real.ancestors() {
        let part = if data_directory.is_some_and(|data| is_same(ancestor, data)) {
            Some("the cluster's data directory")
        } else if repository.is_some_and(|repository| is_same(ancestor, repository)) {
            Some("the repository")
        } else {
            part_of_a_cluster(ancestor)
        };
        if let Some(part) = part {
            return Err(Error::refused(format!(
                "{} lies in {part}: no drill may run there",
                parent.display()
            ))
            .at(ancestor.display())
            .hint(HINT));
        }
    }
    Ok(())
}

/// By device and inode; what is not there is nothing's same.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let one = identity(one);
    one.is_some() && one == identity(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_a_cluster_or_the_repository_is_refused_and_beside_them_is_not() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let live = make("live");
        let other = make("other/base/5");
        std::fs::File::create(root.path().join("other/PG_VERSION")).unwrap();
        make("fast/PG_15_202209061");
        make("wal/archive_status");
        let repository = make("repository/main");
        let url = format!("file://{}", root.path().join("repository").display());
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&live, &link).unwrap();
        let judge = |place: &Path| refuse_inside_a_cluster(place, Some(&live), &url);
        for inside in [
            &live,
            &make("live/scratch"),
            &link,
            &other,
            &make("fast"),
            &make("fast/PG_15_202209061/5"),
            &make("wal/scratch"),
            &repository,
        ] {
            let error = judge(inside).unwrap_err();
            assert_eq!(error.exit(), seawall::error::Exit::Refused, "{error}");
        }
        for beside in [root.path(), &make("drills")] {
            judge(beside).unwrap();
        }
        // A cluster that is gone is in nobody's way.
        refuse_inside_a_cluster(&make("drills"), None, "s3://bucket/pg").unwrap();
    }
}
