//! What a run costs that waits: nothing while it does.
//!
//! A guest that waits for its host must not be polled until the answer is there. If it were, its CPU would be its waiting
//! time, and nothing else would tell: everything works, only for many times the price. So this part is the one whose miss
//! fails the benchmark.

use anyhow::{Result, bail};
use e2e::component::Component;
use nagaya::sandbox::NoManifest;
use tokio::time::Instant;

use crate::figure::{Figure, median, micros};
use crate::process::own_cpu_time;
use crate::run::{Guest, compile};

/// Of each kind, in turns: some seconds in all.
const TURNS: usize = 10;
const RUNS: u32 = 10;
/// Many times what the run takes otherwise.
const WAIT: &str = "20 ms";
const STEPS: [&str; 2] = ["retry", "sleep:20,retry"];
/// CPU of a run that waits, over the wall time of the same run without waiting. Going to sleep, waking up and the ticks
/// meanwhile are paid for; a loop that asks again and again would be a hundred times.
const TIMES: f64 = 3.0;

/// Measures the guest `hostile`, which waits by the clock of WASI; `bench` lends its sandbox.
pub(crate) async fn measure(bench: &Guest) -> Result<Vec<Figure>> {
    let program = compile(&bench.sandbox, &Component::load("hostile")?).await?;
    let turn = async |steps: &str| {
        let (started, before) = (Instant::now(), own_cpu_time());
        let config = format!(r#"{{"describe": "{steps}", "message": "done"}}"#).into();
        for _ in 0..RUNS {
            match bench.sandbox.describe(&program, bench.prepared(&config)).await {
                Err(NoManifest::Refused(said)) if said == "done" => (),
                other => bail!("{steps}: {other:?}"),
            }
        }
        let took = [started.elapsed(), own_cpu_time().saturating_sub(before)];
        Ok(took.map(|time| micros(time) / f64::from(RUNS)))
    };
    let (mut wall, mut cpu) = (vec![], vec![]);
    for number in 0..=TURNS {
        let ([at_once, _], [_, waiting]) = (turn(STEPS[0]).await?, turn(STEPS[1]).await?);
        // The first turn warms code and slots.
        if number > 0 {
            wall.push(at_once);
            cpu.push(waiting);
        }
    }
    let without = median(&wall);
    Ok(vec![
        Figure::of_few("a run of `hostile` that does not wait, wall", "µs", &wall),
        Figure::of_few(format!("the same that waits for {WAIT}, CPU"), "µs", &cpu)
            .never_above(TIMES * without),
    ])
}
