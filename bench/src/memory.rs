//! The host's memory with the three examples active, idle: alone, and with many objects.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::component::Component;
use e2e::{Test, site};

use crate::figure::Figure;
use crate::process::Process;
use crate::server::{done, make_websites, with_host};

/// The examples and their components.
const EXAMPLES: [(&str, &str); 3] = [("website", "website_v1"), ("at", "at"), ("mirror", "mirror")];
/// A Website and its children.
const OBJECTS_OF_A_SITE: u32 = 4;
/// After the last write: what is freed late is free by then.
const QUIET: Duration = Duration::from_secs(10);

/// Measures, with `objects` in all.
pub(crate) fn measure(objects: u32) -> Result<Vec<Figure>> {
    with_host(async |test| on(test, objects).await)
}

async fn on(test: &Test, objects: u32) -> Result<Vec<Figure>> {
    let host = Process::new(test.host.id());
    let alone = host.anonymous_mib()?;
    for (name, component) in EXAMPLES {
        let controller = test.example(name).await?;
        let revision = controller.push(&Component::load(component)?).await?;
        controller.active(&revision).await?;
    }
    tokio::time::sleep(QUIET).await;
    let active = host.anonymous_mib()?;

    let sites = objects / OBJECTS_OF_A_SITE;
    make_websites(&test.admin, &test.namespace, sites).await?;
    for (name, _) in EXAMPLES {
        let runs = if name == "website" { f64::from(sites) } else { 0.0 };
        done(test, name, runs).await?;
    }
    let children = site::children(&test.admin, &test.namespace).await?.len();
    let wanted = sites * (OBJECTS_OF_A_SITE - 1);
    ensure!(u32::try_from(children)? == wanted, "{children} children of {sites} Websites");
    tokio::time::sleep(QUIET).await;
    let (full, resident) = (host.anonymous_mib()?, host.resident_mib()?);
    let objects = sites * OBJECTS_OF_A_SITE;
    let kib_each = (full - active) * 1024.0 / f64::from(objects);
    Ok(vec![
        Figure::new(format!("three examples and {objects} objects, anonymous"), "MiB", full)
            .at_most(40.0),
        Figure::new("the same, resident with files", "MiB", resident),
        Figure::new("three examples without objects, anonymous", "MiB", active),
        Figure::new("the host without a controller, anonymous", "MiB", alone),
        Figure::new("an object more", "KiB", kib_each),
    ])
}
