//! Threads that let all others go first.

/// Lets every other thread go before the calling one, and before those that it starts.
#[cfg(target_os = "linux")]
pub(crate) fn give_way() {
    const LOWEST: libc::c_int = 19;
    // SAFETY: the call takes numbers alone; 0 is the calling thread. Where it fails, the thread merely does not give way.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
}

/// Elsewhere priorities belong to processes.
#[cfg(not(target_os = "linux"))]
pub(crate) fn give_way() {}
