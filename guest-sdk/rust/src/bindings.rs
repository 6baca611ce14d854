//! What wit-bindgen makes of `wit/`, for authors who need the contract itself instead of [`crate::Reconciler`].

#![expect(missing_docs, clippy::same_length_and_capacity, reason = "generated from the WIT files")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "reconciler",
    pub_export_macro: true,
    default_bindings_module: "nagaya_sdk::bindings",
    additional_derives: [PartialEq],
});
