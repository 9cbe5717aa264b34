//! WAL segments that no server wrote: copies of a real one with another header or content.

/// A segment's bytes with its header laid open. `initdb` leaves a whole one in pg_wal.
#[derive(Debug, Clone)]
pub struct Segment(pub Vec<u8>);

impl Segment {
    /// The file at `path`.
    #[track_caller]
    pub fn read(path: impl AsRef<std::path::Path>) -> Self {
        Self(std::fs::read(path).expect("the segment can be read"))
    }

    /// As it would be at segment `number`, counted from 0: its page address tells.
    pub fn numbered(mut self, number: u64) -> Self {
        let address = number * self.0.len() as u64;
        self.0[8..16].copy_from_slice(&address.to_le_bytes());
        self
    }

    /// With another magic number.
    pub fn magic(mut self, magic: u16) -> Self {
        self.0[..2].copy_from_slice(&magic.to_le_bytes());
        self
    }

    /// Of another system.
    pub fn system(mut self, id: u64) -> Self {
        self.0[24..32].copy_from_slice(&id.to_le_bytes());
        self
    }

    /// That says that segments have another size.
    pub fn segment_size(mut self, bytes: u32) -> Self {
        self.0[32..36].copy_from_slice(&bytes.to_le_bytes());
        self
    }

    /// With other content behind its header.
    pub fn content(mut self, byte: u8) -> Self {
        let end = self.0.len() - 1;
        self.0[8192..end].fill(byte);
        self
    }

    /// With another length.
    pub fn length(mut self, bytes: usize) -> Self {
        self.0.resize(bytes, 0);
        self
    }
}

/// The number in the name of a segment of 16 MiB.
pub fn number(name: &str) -> u64 {
    let part = |range| u64::from_str_radix(&name[range], 16).expect("it is the name of a segment");
    part(8..16) << 8 | part(16..24)
}

/// The name of segment `number` on timeline 1, with segments of 16 MiB.
pub fn name(number: u64) -> String {
    format!("00000001{:08X}{:08X}", number >> 8, number & 0xff)
}
