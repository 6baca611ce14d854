//! Writes an author's value as JSON, and tells a field that is absent from a null that somebody wrote.
//!
//! `serde_json` makes one null of both. In a write they differ: a field of a type (`Option`, `None`) that is not set is
//! not sent, since a null is a value that the writer would own. But a null in a free-form value, a
//! `serde_json::Value`, k8s-openapi's `JSON` or `RawExtension`, an entry of a map, an item of a list, is content:
//! Helm's values are full of them.
//!
//! Only a map that does not know its own length, which is how serde writes a struct with `#[serde(flatten)]`, counts
//! as fields of a type.
//!
//! Invariants: `absent_fields_are_dropped_and_nulls_stay`, `what_serde_json_writes_is_written_the_same`.

use serde::{
    Serialize, Serializer,
    ser::{
        Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
        SerializeTuple, SerializeTupleStruct, SerializeTupleVariant,
    },
};
use serde_json::{Error, Map, Value};

/// `value` as JSON without its absent fields.
pub(crate) fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, Error> {
    Ok(value.serialize(Body)?.unwrap_or_default())
}

/// `None`: absent.
type Written = Result<Option<Value>, Error>;

#[expect(clippy::unnecessary_wraps, reason = "the shape that a serializer answers in")]
fn written(value: impl Into<Value>) -> Written {
    Ok(Some(value.into()))
}

/// `{variant: value}`, as `serde_json` writes the variants of an enum that hold something.
fn tagged(variant: Option<&'static str>, value: Value) -> Written {
    match variant {
        Some(variant) => written(Map::from_iter([(variant.to_owned(), value)])),
        None => written(value),
    }
}

struct Body;

/// A list, or a variant that holds one.
struct Items {
    variant: Option<&'static str>,
    items: Vec<Value>,
}

impl Items {
    fn new(variant: Option<&'static str>) -> Self {
        Self { variant, items: vec![] }
    }

    /// An absent item is a null: the places of the others must not change.
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.items.push(to_value(value)?);
        Ok(())
    }

    fn close(self) -> Written {
        tagged(self.variant, Value::Array(self.items))
    }
}

/// An object, or a variant that holds one.
struct Fields {
    variant: Option<&'static str>,
    entries: Map<String, Value>,
    key: Option<String>,
    /// Whether an absent entry is a null: in a map, not in a type.
    keeps_absent: bool,
    /// One of the types by which `serde_json` hands on text that is JSON already.
    is_text: bool,
}

impl Fields {
    fn new(variant: Option<&'static str>) -> Self {
        Self { variant, entries: Map::new(), key: None, keeps_absent: false, is_text: false }
    }

    fn insert<T: Serialize + ?Sized>(&mut self, key: String, value: &T) -> Result<(), Error> {
        match value.serialize(Body)? {
            Some(value) => drop(self.entries.insert(key, value)),
            None if self.keeps_absent => drop(self.entries.insert(key, Value::Null)),
            None => (),
        }
        Ok(())
    }

    fn close(mut self) -> Written {
        match self.entries.values_mut().next() {
            Some(Value::String(text)) if self.is_text => {
                written(serde_json::from_str::<Value>(text)?)
            }
            _ => tagged(self.variant, Value::Object(self.entries)),
        }
    }
}

/// The key of a map's entry, which JSON wants to be a string.
fn key_of<T: Serialize + ?Sized>(key: &T) -> Result<String, Error> {
    match serde_json::to_value(key)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        _ => Err(Error::custom("the key of a map must be a string")),
    }
}

macro_rules! plain {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method(self, value: $type) -> Written {
            written(value)
        })*
    };
}

impl Serializer for Body {
    type Ok = Option<Value>;
    type Error = Error;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Items;
    type SerializeTupleVariant = Items;
    type SerializeMap = Fields;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    plain! {
        serialize_bool: bool, serialize_str: &str,
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64,
    }

    fn serialize_i128(self, value: i128) -> Written {
        serde_json::to_value(value).map(Some)
    }

    fn serialize_u128(self, value: u128) -> Written {
        serde_json::to_value(value).map(Some)
    }

    fn serialize_char(self, value: char) -> Written {
        written(value.to_string())
    }

    fn serialize_bytes(self, value: &[u8]) -> Written {
        written(value)
    }

    fn serialize_none(self) -> Written {
        Ok(None)
    }

    /// `Some(None)`, the idiom for a null that is meant, is one.
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        to_value(value).map(Some)
    }

    /// `Value::Null`.
    fn serialize_unit(self) -> Written {
        written(Value::Null)
    }

    /// Nothing can stand in it, in `PhantomData` for one.
    fn serialize_unit_struct(self, _: &'static str) -> Written {
        Ok(None)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Written {
        written(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Written {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Written {
        tagged(Some(variant), to_value(value)?)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items, Error> {
        Ok(Items::new(None))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items, Error> {
        Ok(Items::new(None))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items, Error> {
        Ok(Items::new(None))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items, Error> {
        Ok(Items::new(Some(variant)))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Fields, Error> {
        Ok(Fields { keeps_absent: length.is_some(), ..Fields::new(None) })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields, Error> {
        Ok(Fields { is_text: name.starts_with("$serde_json::private::"), ..Fields::new(None) })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Fields, Error> {
        Ok(Fields::new(Some(variant)))
    }
}

macro_rules! list {
    ($($form:ident::$method:ident,)*) => {
        $(impl $form for Items {
            type Ok = Option<Value>;
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.push(value)
            }

            fn end(self) -> Written {
                self.close()
            }
        })*
    };
}

list! {
    SerializeSeq::serialize_element, SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field, SerializeTupleVariant::serialize_field,
}

macro_rules! object {
    ($($form:ident,)*) => {
        $(impl $form for Fields {
            type Ok = Option<Value>;
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.insert(key.to_owned(), value)
            }

            fn end(self) -> Written {
                self.close()
            }
        })*
    };
}

object! { SerializeStruct, SerializeStructVariant, }

impl SerializeMap for Fields {
    type Ok = Option<Value>;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key = Some(key_of(key)?);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let key = self.key.take().ok_or_else(|| Error::custom("a value without a key"))?;
        self.insert(key, value)
    }

    fn end(self) -> Written {
        self.close()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, marker::PhantomData};

    use k8s_openapi::{
        api::core::v1::{Pod, PodSpec},
        apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON,
        apimachinery::pkg::runtime::RawExtension,
    };
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Default)]
    #[expect(clippy::option_option, reason = "the idiom for a null that is meant")]
    struct Inner {
        absent: Option<i32>,
        present: Option<i32>,
        meant: Option<Option<i32>>,
    }

    #[derive(Serialize)]
    struct NewType(Option<i32>);

    #[derive(Serialize)]
    enum Choice {
        Plain,
        One(Option<i32>),
        Two(i32, Option<i32>),
        Fields { absent: Option<i32>, present: i32 },
    }

    #[derive(Serialize)]
    struct Flat {
        own: Option<i32>,
        #[serde(flatten)]
        inner: Inner,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }

    #[derive(Serialize)]
    struct Everything {
        values: Value,
        whole: Option<Value>,
        none: Option<Value>,
        json: Option<JSON>,
        raw: RawExtension,
        map: BTreeMap<String, Option<i32>>,
        numbered: BTreeMap<u8, Option<Value>>,
        list: Vec<Option<i32>>,
        inner: Inner,
        listed: Vec<Inner>,
        mapped: BTreeMap<String, Inner>,
        new_type: NewType,
        marker: PhantomData<u8>,
        choices: Vec<Choice>,
        flat: Flat,
    }

    fn everything() -> Everything {
        let free = || json!({"a": null, "b": {"c": null, "d": [{"e": null}, null]}});
        let inner = || Inner { present: Some(1), meant: Some(None), ..Inner::default() };
        Everything {
            values: free(),
            whole: Some(Value::Null),
            none: None,
            json: Some(JSON(free())),
            raw: RawExtension(free()),
            map: [("x".to_owned(), None), ("y".to_owned(), Some(1))].into(),
            numbered: [(7, Some(free())), (8, None)].into(),
            list: vec![None, Some(1)],
            inner: inner(),
            listed: vec![inner(), Inner::default()],
            mapped: [("k".to_owned(), inner())].into(),
            new_type: NewType(None),
            marker: PhantomData,
            choices: vec![
                Choice::Plain,
                Choice::One(None),
                Choice::Two(1, None),
                Choice::Fields { absent: None, present: 1 },
            ],
            flat: Flat { own: None, inner: inner(), rest: [("r".to_owned(), Value::Null)].into() },
        }
    }

    #[test]
    fn absent_fields_are_dropped_and_nulls_stay() {
        let free = json!({"a": null, "b": {"c": null, "d": [{"e": null}, null]}});
        let expected = json!({
            "values": free, "whole": null, "json": free, "raw": free,
            "map": {"x": null, "y": 1},
            "numbered": {"7": free, "8": null},
            "list": [null, 1],
            "inner": {"present": 1, "meant": null},
            "listed": [{"present": 1, "meant": null}, {}],
            "mapped": {"k": {"present": 1, "meant": null}},
            "choices": ["Plain", {"One": null}, {"Two": [1, null]}, {"Fields": {"present": 1}}],
            "flat": {"present": 1, "meant": null, "r": null},
        });
        assert_eq!(to_value(&everything()).unwrap(), expected);
        assert_eq!(to_value(&None::<i32>).unwrap(), Value::Null);
        let pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
        let expected = serde_json::to_value(&pod).unwrap();
        assert_eq!(
            to_value(&pod).unwrap(),
            expected,
            "k8s-openapi leaves out what is absent itself"
        );
    }

    /// Nulls of random free-form values, at random depths, all stay.
    #[test]
    fn what_serde_json_writes_is_written_the_same() {
        fn random(seed: &mut u64, depth: u32) -> Value {
            // SplitMix64, so that the SDK needs no crate for it.
            *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let number = mixed ^ (mixed >> 27);
            let children =
                |seed: &mut u64| (0..number % 4).map(|_| random(seed, depth - 1)).collect();
            match number % 9 {
                2 => json!(number & 1 == 0),
                3 => json!(number),
                4 => json!(-0.25 * f64::from(u32::try_from(number >> 40).unwrap())),
                5 => json!(i64::MIN),
                6 => json!(format!("\u{1f3e0} {number}")),
                7 if depth > 0 => Value::Array(children(seed)),
                8 if depth > 0 => {
                    let children: Vec<Value> = children(seed);
                    let named = children.into_iter().enumerate();
                    Value::Object(named.map(|(n, child)| (format!("k{n}"), child)).collect())
                }
                _ => Value::Null,
            }
        }
        let mut seed = 10;
        for _ in 0..2_000 {
            let value = random(&mut seed, 6);
            assert_eq!(to_value(&value).unwrap(), value);
            assert_eq!(to_value(&[JSON(value.clone())]).unwrap(), json!([value]));
            let raw = serde_json::value::to_raw_value(&value).unwrap();
            assert_eq!(to_value(&json!({ "raw": value })).unwrap(), json!({ "raw": value }));
            assert_eq!(to_value(&raw).unwrap(), value, "JSON that is text already");
        }
        for (odd, expected) in [
            (to_value(&("a", 'b', 1_u8, f32::NAN)).unwrap(), json!(["a", "b", 1, null])),
            (to_value(&i128::from(i64::MAX)).unwrap(), json!(i64::MAX)),
        ] {
            assert_eq!(odd, expected);
        }
        assert!(to_value(&BTreeMap::from([((1, 2), 3)])).is_err(), "no key");
    }
}
