//! Small questions to a server that several workflows ask.

use jiff::Timestamp;

use super::Client;
use crate::error::{Error, Result};

impl Client {
    /// The server's clock, now.
    pub async fn clock(&self) -> Result<Timestamp> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        self.query_text(sql)
            .await?
            .and_then(|time| Timestamp::from_microsecond(time.parse().ok()?).ok())
            .ok_or_else(|| Error::failed("the server did not tell its clock").at(self.place()))
    }

    /// One setting's value, as `SHOW` prints it.
    pub async fn setting(&self, name: &str) -> Result<String> {
        let rows = self.query("SELECT current_setting($1)", &[&name]).await?;
        rows.first()
            .and_then(|row| row.try_get(0).ok())
            .ok_or_else(|| {
                Error::failed(format!("the server does not tell {name}")).at(self.place())
            })
    }

    /// The first column of every row, without NULLs.
    pub async fn query_column(&self, sql: &str) -> Result<Vec<String>> {
        let rows = self.query_rows(sql).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    }
}
