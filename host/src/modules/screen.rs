//! Refuses bytes that no compiler should see: not a component, or of a size and shape that costs too much; pure.
//!
//! Fast rejection with a sentence for the author. It is not the guarantee: that is the limits of the compile child.
//!
//! Invariants: `what_is_no_component_is_refused_with_advice`, `every_limit_is_named_when_it_is_exceeded`,
//! `a_function_is_called_by_its_name`; by `tests/sandbox.rs`: `reconcilers_that_read_workloads_whole_are_admitted`.

use wasmparser::{Encoding, FunctionBody, KnownCustom, Name, Operator, Parser, Payload, TypeRef};

/// Bytes of a file; a Python build has 18.4 MB.
pub const FILE: usize = 32 << 20;
/// Functions of one core module; the largest seen, `CPython`, has 10,625.
const FUNCTIONS: u32 = 20_000;
/// Functions of all core modules of a component, of which `CPython` is a dozen.
const ALL_FUNCTIONS: u64 = 60_000;
/// Bytes of one function's body; the largest seen, `CPython`'s interpreter loop, has 427 KB.
const BODY: usize = 1 << 20;
/// Locals of one function; the most seen are 448.
const LOCALS: u64 = 1_000;
/// (locals + 1) × (branches and blocks + 1) of one function; the most seen is 2.2 million, `Volume` of k8s-openapi read
/// by serde at `opt-level = "s"` (1.9 at 3). At the limit a compiler takes some 9 s and 600 MB.
const FUNCTION_COST: u64 = 6_000_000;
/// The same, added up over a core module; the most seen is 5.4 million, Go with k8s.io/api.
const MODULE_COST: u64 = 12_000_000;
/// And over all core modules of a component: what the compile child can do within its time.
const ALL_COST: u64 = 24_000_000;
/// Letters of a function's name that are shown.
const NAME: usize = 160;

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
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    module.import(import.map_err(malformed)?.ty);
                }
            }
            Payload::CodeSectionStart { count, .. } => module.functions(count)?,
            Payload::CodeSectionEntry(body) => {
                if let Some(excess) = module.function(&body)? {
                    return Err(excess.error(&module.place(bytes)));
                }
                module.costs()?;
            }
            _ => (),
        }
    }
    Ok(())
}

/// The core module that is being read; core modules do not nest.
#[derive(Default)]
struct Module {
    number: u32,
    /// Place of the function that is being read among all of the module, the imported ones first, as tools count them.
    function: u32,
    cost: u64,
    /// Functions and cost of this and all modules before.
    all_functions: u64,
    all_cost: u64,
}

impl Module {
    fn next(before: &Self) -> Self {
        Self {
            number: before.number + 1,
            all_functions: before.all_functions,
            all_cost: before.all_cost,
            ..Self::default()
        }
    }

    fn import(&mut self, import: TypeRef) {
        if matches!(import, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
            self.function = self.function.saturating_add(1);
        }
    }

    fn functions(&mut self, count: u32) -> Result<(), Error> {
        let what = format!("the number of functions in core module {}", self.number);
        limit(what, count.into(), FUNCTIONS.into(), UNUSED)?;
        self.all_functions += u64::from(count);
        let what = "the number of functions in all core modules".to_owned();
        limit(what, self.all_functions, ALL_FUNCTIONS, UNUSED)
    }

    /// What of the function is too much.
    fn function(&mut self, body: &FunctionBody<'_>) -> Result<Option<Excess>, Error> {
        let size = body.range().len() as u64;
        if let excess @ Some(_) = Excess::of("size", size, BODY as u64) {
            return Ok(excess);
        }
        let mut locals = 0;
        for declared in body.get_locals_reader().map_err(malformed)? {
            locals += u64::from(declared.map_err(malformed)?.0);
        }
        if let excess @ Some(_) = Excess::of("number of locals", locals, LOCALS) {
            return Ok(excess);
        }
        let mut paths = 1;
        for operator in body.get_operators_reader().map_err(malformed)? {
            paths += paths_of(&operator.map_err(malformed)?);
        }
        let cost = (locals + 1).saturating_mul(paths);
        if let excess @ Some(_) = Excess::of("compile cost", cost, FUNCTION_COST) {
            return Ok(excess);
        }
        self.function = self.function.saturating_add(1);
        self.cost = self.cost.saturating_add(cost);
        self.all_cost = self.all_cost.saturating_add(cost);
        Ok(None)
    }

    fn costs(&self) -> Result<(), Error> {
        let what = format!("the compile cost of core module {}", self.number);
        limit(what, self.cost, MODULE_COST, SMALLER)?;
        limit("the compile cost of all core modules".to_owned(), self.all_cost, ALL_COST, SMALLER)
    }

    /// The function that is being read, for people.
    fn place(&self, component: &[u8]) -> String {
        let Self { number, function, .. } = self;
        match name_of(component, *number, *function) {
            Some(name) => format!("function {function} of core module {number}, `{name}`,"),
            None => format!(
                "function {function} of core module {number} (its name is stripped; `strip = false` shows it)"
            ),
        }
    }
}

/// A function is too large, in one way.
struct Excess {
    what: &'static str,
    found: u64,
    limit: u64,
}

impl Excess {
    fn of(what: &'static str, found: u64, limit: u64) -> Option<Self> {
        (found > limit).then_some(Self { what, found, limit })
    }

    fn error(self, place: &str) -> Error {
        let Self { what, found, limit } = self;
        Error::Limit { what: format!("the {what} of {place}"), found, limit, advice: SPLIT }
    }
}

/// What the name section, which comes after the code, calls a function of a core module.
fn name_of(component: &[u8], module: u32, function: u32) -> Option<String> {
    let mut number = 0;
    for payload in Parser::new(0).parse_all(component) {
        match payload.ok()? {
            Payload::Version { encoding: Encoding::Module, .. } => number += 1,
            Payload::CustomSection(section) if number == module => {
                let KnownCustom::Name(names) = section.as_known() else { continue };
                for part in names {
                    let Name::Function(names) = part.ok()? else { continue };
                    let mut names = names.into_iter().filter_map(Result::ok);
                    let name = names.find(|naming| naming.index == function)?.name;
                    let shown = name.chars().filter(|letter| !letter.is_control()).take(NAME);
                    return Some(shown.collect());
                }
            }
            _ => (),
        }
    }
    None
}

const SMALLER: &str = "make the component smaller or split the controller";
const UNUSED: &str = "build with link-time optimisation, which removes unused code";
const SPLIT: &str = "split the function or avoid inlining into it, as `opt-level = \"s\"` does";

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
        around(&[module(functions, &[], &[])])
    }

    fn around(modules: &[Vec<u8>]) -> Vec<u8> {
        let modules = modules.iter().flat_map(|module| section(1, module));
        b"\0asm\x0d\0\x01\0".iter().copied().chain(modules).collect()
    }

    /// A core module: imports, `functions`, and what follows the code.
    fn module(functions: &[(usize, Vec<u8>)], imports: &[u8], after: &[u8]) -> Vec<u8> {
        let mut code = leb(functions.len());
        for (locals, instructions) in functions {
            let declared =
                if *locals == 0 { vec![0] } else { [vec![1], leb(*locals), vec![0x7f]].concat() };
            let body = [declared, instructions.clone(), vec![0x0b]].concat();
            code.extend([leb(body.len()), body].concat());
        }
        let types = [leb(functions.len()), vec![0; functions.len()]].concat();
        let start = [&b"\0asm\x01\0\0\0"[..], &section(1, &[1, 0x60, 0, 0]), imports].concat();
        [start, section(3, &types), section(10, &code), after.to_vec()].concat()
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
        let most = (999, loops(5_999));
        for (functions, words, found) in [
            (vec![(0, nop(1)); 20_001], "number of functions in core module 1", 20_001),
            (
                vec![(0, vec![]), (0, nop(BODY))],
                "size of function 1 of core module 1",
                BODY as u64 + 2,
            ),
            (vec![(1_001, vec![])], "number of locals of function 0", 1_001),
            (vec![(999, loops(6_000))], "compile cost of function 0", 1_000 * 6_001),
            (vec![(999, table(5_999))], "compile cost of function 0", 1_000 * 6_001),
            (vec![most.clone(); 3], "compile cost of core module 1", 18_000_000),
        ] {
            let error = screen(&component(&functions)).unwrap_err();
            let Error::Limit { what, found: actual, .. } = &error else { panic!("{error}") };
            assert!(what.contains(words), "{error}");
            assert_eq!(*actual, found, "{error}");
        }
        let largest = module(&vec![most; 2], &[], &[]);
        assert_eq!(screen(&around(&vec![largest.clone(); 2])), Ok(()), "exactly at the limits");
        let many = module(&vec![(0, vec![]); 20_000], &[], &[]);
        assert_eq!(screen(&around(&vec![many.clone(); 3])), Ok(()), "exactly at the limit");
        for (module, count, words) in [
            (largest, 3, "the compile cost of all core modules is 30000000"),
            (many, 4, "the number of functions in all core modules is 80000"),
        ] {
            let error = screen(&around(&vec![module; count])).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_function_is_called_by_its_name() {
        // Two imported functions come before it, a module without names before its module.
        let import = [vec![1, b'm', 1, b'f', 0, 0]].concat().repeat(2);
        let imports = section(2, &[vec![2], import].concat());
        let named = |name: &str| {
            let names =
                [leb(2), leb(2), leb(1), b"a".to_vec(), leb(3), leb(name.len()), name.into()];
            section(0, &[&b"\x04name"[..], &section(1, &names.concat())].concat())
        };
        let functions = [(0, vec![]), (1_001, vec![])];
        let refusal = |after: &[u8]| {
            let modules = [module(&[], &[], &[]), module(&functions, &imports, after)];
            screen(&around(&modules)).unwrap_err().to_string()
        };
        let text = refusal(&named("<Volume as Deserialize>::deserialize"));
        let words = "number of locals of function 3 of core module 2, `<Volume as Deserialize>::deserialize`, is 1001";
        assert!(text.contains(words), "{text}");
        let text = refusal(&named(&format!("a\n{}", "b".repeat(100_000))));
        assert!(text.contains("`abbb") && text.len() < 500, "{text}");
        for unnamed in [vec![], section(0, b"\x04name\x01\xff")] {
            let text = refusal(&unnamed);
            assert!(text.contains("function 3 of core module 2 (its name is stripped"), "{text}");
        }
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
