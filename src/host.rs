//! What this machine is called.

/// The host's name as the kernel has it.
pub fn name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
