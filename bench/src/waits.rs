//! What a run costs that waits: nothing while it does.
//!
//! A guest that waits for its host must not be polled until the answer is there. If it were, its CPU would be its waiting
//! time, and nothing else would tell: everything works, only for many times the price. So this part is the one whose miss
//! fails the benchmark.

use std::time::Duration;

use anyhow::{Result, bail};
use e2e::component::Component;
use nagaya::sandbox::NoManifest;
use tokio::time::{Instant, sleep};

use crate::figure::{Figure, median, micros};
use crate::process::own_cpu_time;
use crate::run::{Guest, compile};

/// Of each kind, in turns: some seconds in all.
const TURNS: usize = 10;
const RUNS: u32 = 10;
/// Many times what the run takes otherwise.
const WAIT: Duration = Duration::from_millis(20);
const STEPS: [&str; 2] = ["retry", "sleep:20,retry"];
/// CPU of a run that waits, over the wall time of the same run without waiting, after as long a pause. Going to sleep and waking
/// up are paid for; a loop that asks again and again would be a hundred times. What the sandbox takes in that time for its ticks, whether anybody runs
/// or not, is measured beside it and is no part of it.
const TIMES: f64 = 3.0;

/// Measures the guest `hostile`, which waits by the clock of WASI; `bench` lends its sandbox.
pub(crate) async fn measure(bench: &Guest) -> Result<Vec<Figure>> {
    let program = compile(&bench.sandbox, &Component::load("hostile")?).await?;
    // As cold as one that comes out of its wait: what was cached is gone by then, and somebody must be woken.
    let run = async |steps: &str| {
        sleep(WAIT).await;
        let (started, before) = (Instant::now(), own_cpu_time());
        let config = format!(r#"{{"describe": "{steps}", "message": "done"}}"#).into();
        match bench.sandbox.describe(&program, bench.prepared(&config)).await {
            Err(NoManifest::Refused(said)) if said == "done" => (),
            other => bail!("{steps}: {other:?}"),
        }
        Ok([started.elapsed(), own_cpu_time().saturating_sub(before)].map(micros))
    };
    let turn = async |steps: &str| {
        let mut sums = [0.0; 2];
        for _ in 0..RUNS {
            let took = run(steps).await?;
            sums = [sums[0] + took[0], sums[1] + took[1]];
        }
        anyhow::Ok(sums.map(|sum| sum / f64::from(RUNS)))
    };
    let idle = async || {
        let before = own_cpu_time();
        for _ in 0..RUNS {
            sleep(WAIT).await;
        }
        micros(own_cpu_time().saturating_sub(before)) / f64::from(RUNS)
    };
    let (mut wall, mut cpu, mut ticks) = (vec![], vec![], vec![]);
    for number in 0..=TURNS {
        let ([at_once, _], [_, waiting]) = (turn(STEPS[0]).await?, turn(STEPS[1]).await?);
        let ticked = idle().await;
        // The first turn warms code and slots.
        if number > 0 {
            wall.push(at_once);
            cpu.push((waiting - ticked).max(0.0));
            ticks.push(ticked);
        }
    }
    let without = median(&wall);
    Ok(vec![
        Figure::of_few("a run of `hostile` that does not wait, wall", "µs", &wall),
        Figure::of_few(format!("the ticks of {WAIT:?} in which nobody runs, CPU"), "µs", &ticks),
        Figure::of_few(format!("the same run that waits for {WAIT:?}, CPU"), "µs", &cpu)
            .never_above(TIMES * without),
    ])
}
