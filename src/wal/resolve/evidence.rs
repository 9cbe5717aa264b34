//! What speaks for each content of a file that has several.

use jiff::Timestamp;
use serde::Serialize;

use super::branch::Archive;
use crate::digest::PlainDigest;
use crate::error::Result;
use crate::postgres::wal_chain::{End, Fit, follows};
use crate::postgres::{Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::wal::object::{self, Content};

/// A file with more than one content.
#[derive(Debug, Serialize)]
pub struct Conflict {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub file: WalFileName,
    /// Its contents, by digest.
    pub contents: Vec<Candidate>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Candidate {
    /// The object.
    #[serde(skip)]
    pub object: WalObject,
    /// Its digest.
    pub digest: PlainDigest,
    /// Its key.
    pub key: String,
    /// When it was stored, by the store's clock.
    pub stored: Timestamp,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Why it cannot be right: it is not what its key says, or could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Contents of the segment before that it goes on from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub follows: Vec<String>,
    /// Contents of the segment before that it does not go on from, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaks_from: Vec<String>,
    /// Contents of the next segment that go on from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followed_by: Vec<String>,
    /// Where its records end, if not at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Lsn>,
    /// When the last transaction in it ended, by the server's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<Timestamp>,
    /// The switch point: of a history, where it says that its parent was left; of a segment,
    /// where its records change the timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<NamedSwitch>,
    /// Of a history: contents of the segment with the switch point whose records agree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agrees_with: Vec<String>,
}

/// Where a timeline was left for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NamedSwitch {
    /// The timeline that was left.
    pub from: TimelineId,
    /// Where.
    pub at: Lsn,
}

/// Lists a system's conflicts and gathers what speaks for each content. Reads the files in
/// conflict and their neighbours.
///
/// # Errors
/// A listing failed. An object that cannot be read is part of the evidence.
pub async fn conflicts(system: &System, size: SegmentSize) -> Result<Vec<Conflict>> {
    let mut archive = Archive::new(system, size);
    let mut conflicts = Vec::new();
    for (file, objects) in system.conflicts(size).await? {
        let mut contents: Vec<Candidate> = Vec::new();
        for (object, info) in objects {
            // The plain and the encrypted object of one digest are the same thing.
            if contents.iter().any(|other| other.digest == object.digest) {
                continue;
            }
            let mut candidate = Candidate {
                object,
                digest: object.digest,
                key: info.key,
                stored: info.modified,
                stored_bytes: info.size,
                trouble: None,
                follows: Vec::new(),
                breaks_from: Vec::new(),
                followed_by: Vec::new(),
                ends_at: None,
                last_transaction: None,
                switch: None,
                agrees_with: Vec::new(),
            };
            archive.gather(&mut candidate).await?;
            contents.push(candidate);
        }
        conflicts.push(Conflict { file, contents });
        archive.forget_before(file);
    }
    Ok(conflicts)
}

impl Archive<'_> {
    async fn gather(&mut self, candidate: &mut Candidate) -> Result<()> {
        let object = candidate.object;
        let content = match self.content(object).await {
            Ok(content) => content,
            Err(trouble) => {
                candidate.trouble = Some(trouble);
                return Ok(());
            }
        };
        match (&*content, object.name) {
            (Content::Segment(chain), WalFileName::Segment(segment)) => {
                for (other, before) in self.before(segment).await? {
                    match follows(&before, chain) {
                        Fit::Follows => candidate.follows.push(short(other)),
                        Fit::Breaks(why) => {
                            candidate
                                .breaks_from
                                .push(format!("{}: {why}", short(other)));
                        }
                        Fit::Unknown => {}
                    }
                }
                for (other, next) in self.after(segment).await? {
                    if follows(chain, &next) == Fit::Follows {
                        candidate.followed_by.push(short(other));
                    }
                }
            }
            (Content::History(history), _) => {
                let Some(parent) = history.parents.last() else {
                    return Ok(());
                };
                candidate.switch = Some(NamedSwitch {
                    from: parent.timeline,
                    at: parent.switch,
                });
                let segment = SegmentName::holding(history.timeline, parent.switch, self.size);
                for (other, chain) in self.contents(segment).await?.chains {
                    if chain
                        .switch
                        .is_some_and(|switch| switch.is_at(parent.switch))
                    {
                        candidate.agrees_with.push(short(other));
                    }
                }
            }
            _ => {}
        }
        if let Content::Segment(chain) = &*content {
            if let End::Stopped { at, .. } = chain.end {
                candidate.ends_at = Some(at);
            }
            candidate.switch = chain.switch.map(|switch| NamedSwitch {
                from: switch.from,
                at: switch.at,
            });
            candidate.last_transaction = object::latest_transaction(self.system, object)
                .await
                .map(|end| end.time);
        }
        Ok(())
    }
}

/// File and the digest's first digits, as people tell contents apart.
fn short(object: WalObject) -> String {
    let digest = object.digest.to_string();
    format!("{}-{}", object.name, digest.get(..8).unwrap_or(&digest))
}

fn as_text<S: serde::Serializer>(name: &WalFileName, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(name)
}
