//! Seawall: backup, WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! This library is shared by every program of the workspace. Its modules form layers, and
//! arrows point one way: workflows ([`wal`], [`backup`]) → [`repository`] → [`storage`] and
//! [`postgres`], which do not know each other → the ground floor ([`error`], [`durable`],
//! [`digest`], …). ARCHITECTURE.md names each rule and a test checks it.

pub mod backup;
pub mod cli;
pub mod config;
pub mod copy;
pub mod daemon;
pub mod digest;
pub mod doctor;
pub mod durable;
pub mod error;
pub mod heartbeat;
pub mod host;
pub mod look;
pub mod postgres;
pub mod privileges;
pub mod progress;
pub mod repository;
pub mod retention;
pub mod schedule;
pub mod status;
pub mod storage;
pub mod time;
pub mod wal;
