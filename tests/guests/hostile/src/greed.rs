//! Makes a manifest declare more than a host can keep.

use nagaya_sdk::bindings::exports::nagaya::controller::guest::{
    Index, Manifest, Mapping, Projection, Watch,
};
use nagaya_sdk::bindings::nagaya::controller::types::Kind;

/// Does one step of `describe` to the manifest, if it is one of these.
pub(crate) fn grow(manifest: &mut Manifest, step: &str, argument: &str) {
    let number = argument.parse::<usize>().unwrap_or(1);
    match step {
        "watches" => {
            let selectors = (0..number).map(|n| format!("greed!=n{n}"));
            manifest.watches.extend(selectors.map(|selector| selecting(Some(selector))));
        }
        "selects" => {
            let selector = format!("greed notin ({})", "v,".repeat(number * 500));
            manifest.watches.push(selecting(Some(selector)));
        }
        "words" => {
            manifest.finalizer = Some(format!("greed.example/{}", "f".repeat(number * 1_000)));
            let (name, path) = ("i".repeat(number * 1_000), "p".repeat(number * 1_000));
            manifest.indexes.push(Index { name, kind: config_map(), path });
        }
        _ => (),
    }
}

fn config_map() -> Kind {
    Kind { group: String::new(), version: "v1".to_owned(), kind: "ConfigMap".to_owned() }
}

fn selecting(label_selector: Option<String>) -> Watch {
    Watch {
        kind: config_map(),
        projection: Projection::Full,
        label_selector,
        field_selector: None,
        predicate: vec![],
        mapping: Mapping::Every,
    }
}
