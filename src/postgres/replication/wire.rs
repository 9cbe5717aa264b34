//! Messages of PostgreSQL's protocol on a stream: framing, notices, errors, time limits.
//!
//! Facts: chapter "Frontend/Backend Protocol" of PostgreSQL's documentation. A message is one
//! byte that names it, a length that counts itself, and a body. `postgres-protocol` reads them
//! too, but knows neither CopyBothResponse nor what walsenders may send after it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result};

/// Bytes that are asked of the system at once.
const READ_SIZE: usize = 256 << 10;

/// No message of a walsender is longer: WAL and archives come in pieces of at most 128 KiB, and
/// a history file is small.
const LONGEST_MESSAGE: usize = 16 << 20;

/// A connection's stream: a socket, or TLS over one.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What names a message of the server's.
pub(super) mod tag {
    pub const AUTHENTICATION: u8 = b'R';
    pub const BACKEND_KEY_DATA: u8 = b'K';
    pub const COMMAND_COMPLETE: u8 = b'C';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_OUT_RESPONSE: u8 = b'H';
    pub const DATA_ROW: u8 = b'D';
    pub const ERROR_RESPONSE: u8 = b'E';
    pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
    pub const NOTICE_RESPONSE: u8 = b'N';
    pub const NOTIFICATION_RESPONSE: u8 = b'A';
    pub const PARAMETER_STATUS: u8 = b'S';
    pub const READY_FOR_QUERY: u8 = b'Z';
    pub const ROW_DESCRIPTION: u8 = b'T';
}

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    pub tag: u8,
    pub body: Bytes,
}

/// An error or notice of the server's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerMessage {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            severity,
            sqlstate,
            message,
            ..
        } = self;
        write!(f, "{severity} {sqlstate}: {message}")?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerMessage {}

impl ServerMessage {
    /// Reads the body of an ErrorResponse or NoticeResponse. What is missing stays empty.
    pub fn parse(mut body: &[u8]) -> Self {
        let mut read = Self::default();
        while let Some((field, rest)) = body.split_first() {
            let end = rest.iter().position(|byte| *byte == 0);
            let Some(end) = end.filter(|_| *field != 0) else {
                break;
            };
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            match field {
                // The severity that is never translated; S is there before 9.6 alone.
                b'V' => read.severity = text,
                b'S' if read.severity.is_empty() => read.severity = text,
                b'C' => read.sqlstate = text,
                b'M' => read.message = text,
                b'D' => read.detail = Some(text),
                b'H' => read.hint = Some(text),
                _ => {}
            }
            body = &rest[end + 1..];
        }
        read
    }

    /// What went wrong for a person, with what to do about it.
    pub fn into_error(self, what: &str, place: &str) -> Error {
        // SQLSTATE classes: 08 connection, 53 resources, 57 operator's intervention.
        let passing = ["08", "53", "57"]
            .iter()
            .any(|class| self.sqlstate.starts_with(class));
        let hint = match self.sqlstate.as_str() {
            "28P01" => Some("look at the role, its password and pg_hba.conf".to_owned()),
            "28000" => Some(
                "the role needs REPLICATION, and pg_hba.conf a line whose database is the word replication (`all` does not cover it)"
                    .to_owned(),
            ),
            "42501" => Some("the role needs REPLICATION: ALTER ROLE … REPLICATION".to_owned()),
            "53300" => Some("raise max_wal_senders, or wait until others are done".to_owned()),
            _ => self.hint.clone(),
        };
        let error = Error::failed(what).at(place).retryable(passing);
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        error.because(self)
    }
}

/// Messages over one stream.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    received: BytesMut,
    /// `host=… port=… user=…`
    pub place: String,
    /// What the server reported of its settings.
    pub parameters: BTreeMap<String, String>,
}

impl Wire {
    pub fn new(stream: Box<dyn Stream>, place: String) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
            place,
            parameters: BTreeMap::new(),
        }
    }

    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let sent = async {
            self.stream.write_all(message).await?;
            self.stream.flush().await
        };
        let sent = sent.await;
        sent.map_err(|error| self.broken(error))
    }

    /// The next message that is no notice. `limit` is how long the server may be silent.
    ///
    /// # Errors
    /// The end of the connection, silence, and what is no message. An ErrorResponse is a
    /// message.
    pub async fn receive(&mut self, limit: Duration) -> Result<Message> {
        loop {
            let Some(message) = self.take_message()? else {
                self.received.reserve(READ_SIZE);
                let read = self.stream.read_buf(&mut self.received);
                match tokio::time::timeout(limit, read).await {
                    Ok(Ok(0)) => {
                        return Err(Error::failed("the server closed the connection")
                            .at(&self.place)
                            .hint("the server's log tells why: a shutdown, a crash, pg_terminate_backend")
                            .retryable(true));
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(self.broken(error)),
                    Err(_) => {
                        return Err(Error::failed(format!(
                            "the server was silent for {} s",
                            limit.as_secs()
                        ))
                        .at(&self.place)
                        .hint("it hangs, or the network lost the connection; look at pg_stat_activity and at the server's disks")
                        .retryable(true));
                    }
                }
                continue;
            };
            match message.tag {
                tag::NOTICE_RESPONSE => {
                    let notice = ServerMessage::parse(&message.body);
                    match notice.severity.as_str() {
                        "WARNING" => tracing::warn!("the server warns: {}", notice.message),
                        _ => tracing::debug!("the server says: {}", notice.message),
                    }
                }
                tag::PARAMETER_STATUS => {
                    let mut texts = message.body.split(|byte| *byte == 0);
                    if let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                        self.parameters.insert(text(name), text(value));
                    }
                }
                tag::NOTIFICATION_RESPONSE => {}
                _ => return Ok(message),
            }
        }
    }

    /// The same, with an ErrorResponse as an error that says what could not be done.
    pub async fn expect(&mut self, limit: Duration, doing: &str) -> Result<Message> {
        let message = self.receive(limit).await?;
        match message.tag {
            tag::ERROR_RESPONSE => {
                let said = ServerMessage::parse(&message.body);
                Err(said.into_error(&format!("cannot {doing}"), &self.place))
            }
            _ => Ok(message),
        }
    }

    fn take_message(&mut self) -> Result<Option<Message>> {
        let Some(header) = self.received.first_chunk::<5>() else {
            return Ok(None);
        };
        let [tag, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if !(4..=LONGEST_MESSAGE).contains(&length) {
            return Err(self.strange(&format!("a message of {length} bytes")));
        }
        if self.received.len() < length + 1 {
            self.received.reserve(length + 1 - self.received.len());
            return Ok(None);
        }
        let mut body = self.received.split_to(length + 1).freeze();
        body.advance(5);
        Ok(Some(Message { tag, body }))
    }

    /// What the server sent is not what the protocol has at this point.
    pub fn strange(&self, what: &str) -> Error {
        Error::failed(format!("the server's answer is not understood: {what}"))
            .at(&self.place)
            .hint("is something else than PostgreSQL 14 to 18 listening there, or a pooler in between? connect to the server itself")
    }

    /// A message that does not belong here.
    pub fn unexpected(&self, message: &Message, doing: &str) -> Error {
        let tag = message.tag.escape_ascii();
        self.strange(&format!("message '{tag}' while it was asked to {doing}"))
    }

    fn broken(&self, error: std::io::Error) -> Error {
        Error::failed("the connection to the server broke")
            .at(&self.place)
            .retryable(true)
            .because(error)
    }
}

/// The columns of a DataRow; `None` is NULL.
pub(super) fn columns(mut body: Bytes) -> Option<Vec<Option<Bytes>>> {
    let count = body.try_get_u16().ok()?;
    (0..count)
        .map(|_| match body.try_get_i32().ok()? {
            -1 => Some(None),
            length => {
                let length = usize::try_from(length).ok()?;
                (length <= body.len()).then(|| Some(body.split_to(length)))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wire_with(bytes: &[u8]) -> Wire {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(bytes).await.unwrap();
        Wire::new(Box::new(ours), "host=test".into())
    }

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn notices_and_settings_are_passed_over_and_errors_tell_sqlstate_and_message() {
        let message = |tag: u8, body: &[u8]| {
            let length = (body.len() as u32 + 4).to_be_bytes();
            [&[tag], &length[..], body].concat()
        };
        let mut bytes = message(b'N', b"SNOTICE\0Mhi\0\0");
        bytes.extend(message(b'S', b"a_setting\0on\0"));
        let error = b"SERREUR\0VERROR\0C58P01\0Mno such file\0Dthe detail\0\0";
        bytes.extend(message(b'E', error));
        let mut wire = wire_with(&bytes).await;
        let error = wire.expect(SHORT, "read it").await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("cannot read it")
                && text.contains("ERROR 58P01: no such file (the detail)")
                && text.contains("host=test"),
            "{text}"
        );
        assert_eq!(wire.parameters["a_setting"], "on");
    }

    #[tokio::test]
    async fn the_end_silence_and_nonsense_are_told_apart() {
        let ended = wire_with(b"").await.receive(SHORT).await.unwrap_err();
        assert!(ended.what().contains("closed the connection") && ended.is_retryable());
        let nonsense = wire_with(b"HTTP/1.1 400")
            .await
            .receive(SHORT)
            .await
            .unwrap_err();
        assert!(nonsense.what().contains("not understood"), "{nonsense}");
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut silent = Wire::new(Box::new(ours), "host=test".into());
        let error = silent.receive(Duration::from_millis(5)).await.unwrap_err();
        assert!(error.what().contains("was silent"), "{error}");
    }

    #[test]
    fn a_row_that_is_cut_off_is_none() {
        let row = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        let read = columns(Bytes::from_static(row)).unwrap();
        assert_eq!(read, [Some(Bytes::from_static(b"ab")), None]);
        for length in 0..row.len() {
            assert!(columns(Bytes::copy_from_slice(&row[..length])).is_none());
        }
    }
}
