//! What the service manager is told (`sd_notify`), where there is one.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The line to the service manager.
#[derive(Debug)]
pub struct Notify {
    watchdog: Option<Duration>,
    last_sign: Option<Instant>,
    status: String,
}

impl Notify {
    /// As the environment says.
    pub fn new() -> Self {
        Self {
            // Twice as often as it must be: systemd's own advice.
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            last_sign: None,
            status: String::new(),
        }
    }

    /// Work has begun, or goes on after a reload.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// The end has begun; it takes at most `limit`.
    pub fn stopping(&self, limit: Duration) {
        let limit = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
        tell(&[
            NotifyState::Stopping,
            NotifyState::ExtendTimeoutUsec(limit),
            NotifyState::Status("stopping"),
        ]);
    }

    /// One line on what goes on; said when it changes.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The loop is alive. To be called by it, and by nobody else.
    pub fn alive(&mut self) {
        let Some(interval) = self.watchdog else {
            return;
        };
        if self.last_sign.is_none_or(|last| last.elapsed() >= interval) {
            tell(&[NotifyState::Watchdog]);
            self.last_sign = Some(Instant::now());
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not reached: {error}");
    }
}
