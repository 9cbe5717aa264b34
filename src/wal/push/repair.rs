//! Bringing one repository a file that another holds.

use super::Engine;
use crate::error::{Error, Result};
use crate::postgres::{SegmentSize, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;
use crate::wal::object::Trouble;
use crate::wal::transfer::{Failure, transfer};

impl Engine {
    /// Brings `repository` the object of `name` from the first other repository that holds it,
    /// byte for byte, in bounded memory. What arrives is opened and digested on the way, and
    /// given up if it is not what its key says.
    ///
    /// # Errors
    /// No other repository holds it, or one of the two fails.
    pub async fn copy_to(&self, name: WalFileName, repository: &str) -> Result<()> {
        let mut nobody = Error::failed(format!("no repository that can be asked holds {name}"))
            .hint("if no server has it in pg_wal any more, it is lost: take a full backup");
        let is_aim = |system: &System| system.repository().name() == repository;
        let Some(aim) = self.targets.iter().find(|target| is_aim(target.system())) else {
            return Err(Error::failed(format!(
                "repository {repository} cannot be opened"
            )));
        };
        for source in self.systems().filter(|system| !is_aim(system)) {
            match source.held(name).await {
                Ok(Held::One(object, _)) => {
                    aim.register(&self.control).await?;
                    match aim.system().held(name).await? {
                        Held::One(there, _) if there.digest == object.digest => return Ok(()),
                        Held::Absent => aim.refuse_set_aside(object, &aim.aside().await?)?,
                        _ => return Err(aim.system().conflict(name, &[object.digest])),
                    }
                    copy(source, aim.system(), object, self.control.segment_size).await?;
                    return aim.confirm(object).await;
                }
                Ok(_) => {}
                Err(error) => nobody = error,
            }
        }
        Err(nobody)
    }
}

async fn copy(
    source: &System,
    aim: &System,
    object: WalObject,
    segment_size: SegmentSize,
) -> Result<()> {
    let place = format!("{} of {}", source.keys().wal_object(object), source.place());
    match transfer(source, aim, object, segment_size).await {
        Ok(_) => Ok(()),
        Err(Failure::Source(Trouble::Damaged(why))) => {
            Err(Error::failed(format!("{} is damaged: {why}", object.name)).at(place))
        }
        Err(Failure::Source(Trouble::Unread(error))) => Err(error.at(place)),
        Err(Failure::Destination(error)) => Err(error),
    }
}
