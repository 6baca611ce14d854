//! Waits for conditions, never for time.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep, timeout_at};

/// Four tests at a time look twenty times a second: about a tenth of a core of the server.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until `look` succeeds; its error says what is there instead, and the last one is shown if
/// the time runs out.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = Some(seen),
            Err(_) => break,
        }
        // A look that never waits would never be timed out.
        if Instant::now() >= deadline {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let seen = last.unwrap_or_else(|| anyhow::anyhow!("the first look did not end"));
    Err(seen).with_context(|| format!("not within {limit:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[tokio::test]
    async fn the_last_sight_is_in_the_error() {
        let mut looks = 0;
        let limit = Duration::from_secs(2);
        let error = within(limit, "three looks", async || {
            looks += 1;
            ensure!(looks < 0, "look {looks}");
            Ok(())
        })
        .await
        .unwrap_err();
        assert!(looks > 1);
        let text = format!("{error:#}");
        assert_eq!(text, format!("not within 2s: three looks: look {looks}"));
    }

    #[tokio::test]
    async fn a_look_that_hangs_does_not_hang_the_wait() {
        let limit = Duration::from_millis(200);
        let look = async || std::future::pending::<Result<()>>().await;
        let error = within(limit, "an answer", look).await.unwrap_err();
        assert!(format!("{error:#}").contains("did not end"), "{error:#}");
    }
}
