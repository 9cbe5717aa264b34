//! How the pages look that people read: the report of a drill and the daemon's status page.

/// The part of their style that they share: colours by light and by dark, cards, tiles, tables.
pub const LOOK: &str = include_str!("look.css");
