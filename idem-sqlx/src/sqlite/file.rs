//! The file, as the system sees it.

use std::fs::{self, OpenOptions};
#[cfg(unix)]
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Creates a file that does not exist, for its owner alone. SQLite gives its WAL the same mode. What goes wrong here goes wrong
/// again when SQLite opens the file, and is reported then.
pub(super) fn create(path: &Path) {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(0o600);
    let _ = options.open(path);
}

/// Returns whether the file is a mount by itself, as in a container to which a file was given and not its folder. Then its WAL
/// lies in the container. `false` if the system does not tell.
pub(super) fn is_mounted_alone(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| is_mount(&mounts, &path))
}

/// Each line is a mount, and its fifth word the place: <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>.
fn is_mount(mounts: &str, path: &Path) -> bool {
    let unescape = |place: &str| {
        let place = place.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
        place.replace("\\134", "\\")
    };
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|place| Path::new(&unescape(place)) == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_a_mount_is_told_from_one_in_a_mounted_folder() {
        let mounts = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      28 27 254:0 /srv/shop /data rw,relatime - ext4 /dev/vda rw\n\
                      29 27 254:0 /srv/keys.db /app/my\\040keys.db rw,relatime - ext4 /dev/vda rw\n";
        assert!(is_mount(mounts, Path::new("/app/my keys.db")));
        for other in ["/data/keys.db", "/app", "/app/keys.db", "/srv/keys.db"] {
            assert!(!is_mount(mounts, Path::new(other)), "{other}");
        }
    }
}
