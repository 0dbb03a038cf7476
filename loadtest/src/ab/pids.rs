//! What the processes behind a target cost: CPU in the target's own time, and memory.
//!
//! The one idea: a proxy works when it is sent something, so its CPU is read at the
//! beginning and the end of each of its slots and only what lies between is counted; what
//! it does while the other target has its turn is not. The kernel counts in hundredths of
//! a second, and it rounds each reading: sums over many slots are good, short runs are
//! not. Linux only; elsewhere there is no `/proc`, and the error says so.
//!
//! Source: proc(5), `/proc/pid/stat` fields 14, 15 and 22, `/proc/pid/status`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::deal::Slot;

/// Ticks a second of the times in `/proc/pid/stat`; Linux tells userspace 100 on every
/// machine, whatever its own clock does.
const TICKS_PER_S: u64 = 100;

/// What the processes of one target used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all threads during the target's own slots.
    pub cpu_us: u64,
    /// Requests that were sent in these slots.
    pub requests: u64,
    /// Most memory seen during the run (VmRSS), summed over the processes.
    pub rss_max_bytes: u64,
    /// Most memory since the processes began (VmHWM), summed.
    pub rss_peak_bytes: u64,
}

impl Usage {
    /// CPU time of one request; `None` without a request.
    pub fn cpu_us_per_request(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.cpu_us as f64 / self.requests as f64)
    }
}

/// One process, known by its start so that a later one with its id is not taken for it.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u32,
    start: u64,
}

/// The processes of one target.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    processes: Vec<Process>,
}

impl Watched {
    /// Errors: a process that is not there, in words.
    pub(super) fn new(pids: &[u32]) -> Result<Watched, String> {
        let process = |pid: &u32| Ok(Process { pid: *pid, start: stat(*pid)?.start });
        Ok(Watched { processes: pids.iter().map(process).collect::<Result<_, String>>()? })
    }

    fn cpu_us(&self) -> Result<u64, String> {
        let mut ticks = 0;
        for process in &self.processes {
            let stat = stat(process.pid)?;
            if stat.start != process.start {
                return Err(gone(process.pid, "another process has its id"));
            }
            ticks += stat.ticks;
        }
        Ok(ticks * (1_000_000 / TICKS_PER_S))
    }

    /// Now and most ever, in bytes.
    fn memory(&self) -> Result<(u64, u64), String> {
        let (mut now, mut peak) = (0, 0);
        for process in &self.processes {
            let text = read(process.pid, "status")?;
            let bytes = |name: &str| {
                kib(&text, name).ok_or_else(|| gone(process.pid, "it has no memory any more"))
            };
            now += bytes("VmRSS:")? * 1024;
            peak += bytes("VmHWM:")? * 1024;
        }
        Ok((now, peak))
    }

    /// Watches until the last slot has ended or `over` is dropped; blocks its thread.
    /// `requests` is left at 0.
    ///
    /// Errors: a process that ended meanwhile.
    pub(super) fn watch(
        &self,
        slots: impl Iterator<Item = Slot>,
        started: Instant,
        over: &Receiver<()>,
    ) -> Result<Usage, String> {
        let mut usage = Usage::default();
        let look = |usage: &mut Usage| -> Result<u64, String> {
            let (now, peak) = self.memory()?;
            usage.rss_max_bytes = usage.rss_max_bytes.max(now);
            usage.rss_peak_bytes = usage.rss_peak_bytes.max(peak);
            self.cpu_us()
        };
        for slot in slots {
            if !wait(started, slot.from_us, over) {
                break;
            }
            let before = look(&mut usage)?;
            let whole = wait(started, slot.to_us, over);
            usage.cpu_us += look(&mut usage)?.saturating_sub(before);
            if !whole {
                break;
            }
        }
        look(&mut usage)?;
        Ok(usage)
    }
}

/// Waits until a time of the run; false when the run is over before it.
fn wait(started: Instant, at_us: u64, over: &Receiver<()>) -> bool {
    let Some(at) = started.checked_add(Duration::from_micros(at_us)) else { return false };
    let left = at.saturating_duration_since(Instant::now());
    left.is_zero() || matches!(over.recv_timeout(left), Err(RecvTimeoutError::Timeout))
}

/// What is read of `/proc/pid/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// User and system time.
    ticks: u64,
    /// When it began; with the id it names one process.
    start: u64,
}

fn stat(pid: u32) -> Result<Stat, String> {
    let text = read(pid, "stat")?;
    let (stat, state) = parse(&text).ok_or_else(|| gone(pid, "its stat is not understood"))?;
    // A zombie still has its line, and no memory.
    if matches!(state, "Z" | "X") { Err(gone(pid, "it has ended")) } else { Ok(stat) }
}

/// The numbers and the state. The name in parentheses may hold anything, so the last
/// parenthesis ends it.
fn parse(text: &str) -> Option<(Stat, &str)> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The state is field 3 and the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((Stat { ticks: field(14)? + field(15)?, start: field(22)? }, *fields.first()?))
}

/// A line such as `VmRSS:   1234 kB`.
fn kib(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}"))
        .map_err(|error| gone(pid, &error.to_string()))
}

fn gone(pid: u32, why: &str) -> String {
    format!("process {pid} is not there: {why}")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn name_of_a_process_may_hold_anything() {
        let line = "7 (a) R 1 (x) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 8812 1 1";
        let (stat, state) = parse(line).unwrap();
        assert_eq!((stat, state), (Stat { ticks: 300, start: 8812 }, "S"));
        for cut in 0..line.len() - 4 {
            let _ = parse(&line[..cut]);
        }
        assert_eq!(kib("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(kib("VmRSS:\t  12\n", "VmRSS:"), None);
    }

    #[test]
    fn own_process_uses_time_and_memory() {
        let own = Watched::new(&[std::process::id()]).unwrap();
        let started = Instant::now();
        let (tell, over) = mpsc::channel::<()>();
        let slot = Slot { target: 0, from_us: 0, to_us: 3_600_000_000 };
        let used = std::thread::scope(|scope| {
            let own = &own;
            let watch = move || own.watch(std::iter::once(slot), started, &over);
            let watching = scope.spawn(watch);
            // Until the kernel has counted some work of ours.
            let before = own.cpu_us().unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while own.cpu_us().unwrap() < before + 50_000 && Instant::now() < deadline {
                std::hint::black_box(crate::text::text(1, 1000));
            }
            drop(tell);
            watching.join().unwrap().unwrap()
        });
        assert!(used.cpu_us >= 10_000, "{used:?}");
        assert!(used.rss_max_bytes > 0 && used.rss_peak_bytes >= used.rss_max_bytes, "{used:?}");
        assert_eq!(used.cpu_us_per_request(), None);
        assert_eq!(
            Usage { requests: 4, ..used }.cpu_us_per_request(),
            Some(used.cpu_us as f64 / 4.0)
        );
    }

    #[test]
    fn process_that_is_gone_is_named() {
        let mut child = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
        let watched = Watched::new(&[child.id()]).unwrap();
        child.kill().unwrap();
        // Not waited for yet it is a zombie, then nothing.
        let word = format!("process {}", child.id());
        child.wait().unwrap();
        let (_tell, over) = mpsc::channel();
        let told = watched.watch(std::iter::empty(), Instant::now(), &over).unwrap_err();
        assert!(told.contains(&word), "{told}");
        assert!(Watched::new(&[child.id()]).unwrap_err().contains(&word));
    }
}
