//! Refuses bytes that no compiler should see: not a component, or of a size and shape that costs too much; pure.
//!
//! Fast rejection with a sentence for the author. It is not the guarantee: that is the limits of the compile child.
//!
//! Invariants: `what_is_no_component_is_refused_with_advice`, `every_limit_is_named_when_it_is_exceeded`.

use wasmparser::{Encoding, FunctionBody, Operator, Parser, Payload};

/// Bytes of a file; a Python build has 17.6 MiB.
pub const FILE: usize = 32 << 20;
/// Functions of one core module; the largest seen has 8,207.
const FUNCTIONS: u32 = 20_000;
/// Bytes of one function's body; the largest seen has 181 KB.
const BODY: usize = 512 << 10;
/// Locals of one function; the most seen are 128.
const LOCALS: u64 = 1_000;
/// (locals + 1) × (branches and blocks + 1) of one function; the most seen is 635,067.
const FUNCTION_COST: u64 = 1_000_000;
/// The same, added up over a core module; the most seen is 2.4 million.
const MODULE_COST: u64 = 6_000_000;

/// Why the bytes are refused; the text is shown to the team as it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something else altogether.
    #[error("this is not a WebAssembly component: it does not begin with the bytes of one")]
    NotWasm,
    /// A core module.
    #[error(
        "this is a core WebAssembly module, and a component is needed: build with `cargo build --release --target \
         wasm32-wasip2`, which yields one, or wrap the module with `wasm-tools component new`"
    )]
    CoreModule,
    /// It does not parse.
    #[error("this is not valid WebAssembly: {0}")]
    Malformed(String),
    /// The file is too large.
    #[error(
        "the file has {size} bytes, the limit is {FILE}; strip debug information (`strip = true`)"
    )]
    File {
        /// Its size.
        size: usize,
    },
    /// A limit on one core module or function.
    #[error("{what} is {found}, the limit is {limit}; {advice}")]
    Limit {
        /// What is too much, and where.
        what: String,
        /// How much it is.
        found: u64,
        /// How much it may be.
        limit: u64,
        /// What the author can do.
        advice: &'static str,
    },
}

/// Passes `bytes` on or says why not.
pub fn screen(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > FILE {
        return Err(Error::File { size: bytes.len() });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(Error::NotWasm);
    }
    let mut module = Module::default();
    for (position, payload) in Parser::new(0).parse_all(bytes).enumerate() {
        let payload = payload.map_err(malformed)?;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if position == 0 => {
                return Err(Error::CoreModule);
            }
            Payload::Version { encoding: Encoding::Module, .. } => module = Module::next(&module),
            Payload::CodeSectionStart { count, .. } => module.functions(count)?,
            Payload::CodeSectionEntry(body) => module.function(&body)?,
            _ => (),
        }
    }
    Ok(())
}

/// The core module that is being read; core modules do not nest.
#[derive(Default)]
struct Module {
    number: u32,
    function: u32,
    cost: u64,
}

impl Module {
    fn next(before: &Self) -> Self {
        Self { number: before.number + 1, ..Self::default() }
    }

    fn functions(&self, count: u32) -> Result<(), Error> {
        let what = format!("the number of functions in core module {}", self.number);
        limit(
            what,
            count.into(),
            FUNCTIONS.into(),
            "build with link-time optimisation, which removes unused code",
        )
    }

    fn function(&mut self, body: &FunctionBody<'_>) -> Result<(), Error> {
        let place = format!("function {} of core module {}", self.function, self.number);
        self.function += 1;
        let size = body.range().len();
        limit(format!("the size of {place}"), size as u64, BODY as u64, SPLIT)?;
        let mut locals = 0;
        for declared in body.get_locals_reader().map_err(malformed)? {
            locals += u64::from(declared.map_err(malformed)?.0);
        }
        limit(format!("the number of locals of {place}"), locals, LOCALS, SPLIT)?;
        let mut paths = 1;
        for operator in body.get_operators_reader().map_err(malformed)? {
            paths += paths_of(&operator.map_err(malformed)?);
        }
        let cost = (locals + 1).saturating_mul(paths);
        limit(format!("the compile cost of {place}"), cost, FUNCTION_COST, SPLIT)?;
        self.cost = self.cost.saturating_add(cost);
        let what = format!("the compile cost of core module {}", self.number);
        limit(what, self.cost, MODULE_COST, "make the component smaller or split the controller")
    }
}

const SPLIT: &str = "split the function or avoid inlining into it";

fn limit(what: String, found: u64, limit: u64, advice: &'static str) -> Result<(), Error> {
    if found <= limit {
        return Ok(());
    }
    Err(Error::Limit { what, found, limit, advice })
}

/// How many ways an instruction adds to the paths through its function.
fn paths_of(operator: &Operator<'_>) -> u64 {
    match operator {
        Operator::BrTable { targets } => u64::from(targets.len()) + 1,
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::TryTable { .. }
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::BrOnNull { .. }
        | Operator::BrOnNonNull { .. }
        | Operator::BrOnCast { .. }
        | Operator::BrOnCastFail { .. } => 1,
        _ => 0,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn malformed(error: wasmparser::BinaryReaderError) -> Error {
    Error::Malformed(format!("{} at byte {}", error.message(), error.offset()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leb(mut number: usize) -> Vec<u8> {
        let mut bytes = vec![];
        loop {
            let byte = u8::try_from(number & 0x7f).unwrap();
            number >>= 7;
            if number == 0 {
                bytes.push(byte);
                return bytes;
            }
            bytes.push(byte | 0x80);
        }
    }

    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        [vec![id], leb(content.len()), content.to_vec()].concat()
    }

    /// A component around a core module of `functions`, each given as locals and instructions.
    fn component(functions: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut code = leb(functions.len());
        for (locals, instructions) in functions {
            let declared =
                if *locals == 0 { vec![0] } else { [vec![1], leb(*locals), vec![0x7f]].concat() };
            let body = [declared, instructions.clone(), vec![0x0b]].concat();
            code.extend([leb(body.len()), body].concat());
        }
        let types = [leb(functions.len()), vec![0; functions.len()]].concat();
        let module = [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, &[1, 0x60, 0, 0]),
            section(3, &types),
            section(10, &code),
        ]
        .concat();
        [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
    }

    /// `count` loops, one in the other.
    fn loops(count: usize) -> Vec<u8> {
        [[3, 0x40].repeat(count), [0x0b].repeat(count)].concat()
    }

    #[test]
    fn what_is_no_component_is_refused_with_advice() {
        assert_eq!(screen(b""), Err(Error::NotWasm));
        assert_eq!(screen(b"#!/bin/sh\n"), Err(Error::NotWasm));
        assert_eq!(screen(b"\0asm\x01\0\0\0"), Err(Error::CoreModule));
        assert!(Error::CoreModule.to_string().contains("wasm32-wasip2"));
        assert!(matches!(screen(b"\0asm\x0d\0\x01\0\x01\xff"), Err(Error::Malformed(_))));
        assert_eq!(screen(&vec![0; FILE + 1]), Err(Error::File { size: FILE + 1 }));
        assert_eq!(screen(&component(&[(3, loops(2))])), Ok(()));
    }

    #[test]
    fn every_limit_is_named_when_it_is_exceeded() {
        let nop = |count| vec![1; count];
        let table =
            |targets: usize| [vec![0x41, 0, 0x0e], leb(targets), vec![0; targets + 1]].concat();
        for (functions, words, found) in [
            (vec![(0, nop(1)); 20_001], "number of functions in core module 1", 20_001),
            (
                vec![(0, vec![]), (0, nop(BODY))],
                "size of function 1 of core module 1",
                BODY as u64 + 2,
            ),
            (vec![(1_001, vec![])], "number of locals of function 0", 1_001),
            (vec![(1_000, loops(1_000))], "compile cost of function 0", 1_001 * 1_001),
            (vec![(999, table(999))], "compile cost of function 0", 1_000 * 1_001),
            (vec![(999, loops(999)); 7], "compile cost of core module 1", 7_000_000),
        ] {
            let error = screen(&component(&functions)).unwrap_err();
            let Error::Limit { what, found: actual, .. } = &error else { panic!("{error}") };
            assert!(what.contains(words), "{error}");
            assert_eq!(*actual, found, "{error}");
        }
        assert_eq!(screen(&component(&vec![(999, loops(999)); 6])), Ok(()), "exactly at the limit");
    }

    #[test]
    fn locals_that_overflow_do_not_pass() {
        let count = leb(u32::MAX as usize);
        let body = [vec![2], count.clone(), vec![0x7f], count, vec![0x7f, 0x0b]].concat();
        let code = [vec![1], leb(body.len()), body].concat();
        let module = [
            b"\0asm\x01\0\0\0".to_vec(),
            section(1, &[1, 0x60, 0, 0]),
            section(3, &[1, 0]),
            section(10, &code),
        ];
        let bytes = [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module.concat())].concat();
        assert!(screen(&bytes).is_err());
    }
}
