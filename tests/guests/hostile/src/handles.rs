//! Takes handles by the one import that gives a new one with each call.

use declared::Failure;

// Of WASI's interfaces only what is called; the linker merges it with what the standard library imports.
wit_bindgen::generate!({
    inline: "
        package hostile:handles;

        world imports {
            import wasi:clocks/monotonic-clock@0.2.3;
        }

        package wasi:io@0.2.3 {
            interface poll {
                resource pollable;
            }
        }

        package wasi:clocks@0.2.3 {
            interface monotonic-clock {
                use wasi:io/poll@0.2.3.{pollable};
                type duration = u64;
                subscribe-duration: func(when: duration) -> pollable;
            }
        }
    ",
    generate_all,
});

/// Takes `count` handles, then answers how many it holds.
pub(crate) fn take(count: u32) -> Result<(), Failure> {
    let far = u64::MAX / 2;
    let held: Vec<_> =
        (0..count).map(|_| wasi::clocks::monotonic_clock::subscribe_duration(far)).collect();
    Err(Failure::Retry(format!("it holds {} handles", held.len())))
}
