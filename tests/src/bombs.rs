//! Components that cost a compiler far more than their size says, made on the spot.
//!
//! The screen refuses the first seven. The last passes it, since the values that a loop carries beside the locals are not
//! counted there; what refuses it is the limits of the child process that compiles.

use crate::component::Component;

/// `i32`.
const NUMBER: u8 = 0x7f;
/// The most functions that the screen lets through in one core module.
const FUNCTIONS: usize = 20_000;
/// The most parameters of a block.
const CARRIED: usize = 1_000;

/// A component to be refused.
#[derive(Debug, Clone)]
pub struct Bomb {
    /// What it is made of, for people.
    pub name: &'static str,
    /// It.
    pub component: Component,
    /// Whether it gets past the screen.
    pub passes_the_screen: bool,
}

/// All eight.
pub fn all() -> Vec<Bomb> {
    let bomb = |name, modules: &[Vec<u8>], passes_the_screen| {
        let bytes = component(modules);
        Bomb { name, component: Component::from_bytes(&bytes), passes_the_screen }
    };
    let looping = |size| module(&[loops(size, size)]);
    vec![
        bomb("1,000 locals × 4,100 loops", &[module(&[loops(4_100, 1_000)])], false),
        bomb("2,000 loops × 2,000 locals", &[looping(2_000)], false),
        bomb("10,000 loops × 10,000 locals", &[looping(10_000)], false),
        bomb("500 br_tables × 500 targets × 500 locals", &[module(&[tables(500)])], false),
        bomb("100,000 functions", &[module(&vec![empty(); 100_000])], false),
        bomb("40 modules of 20,000 functions", &vec![module(&vec![empty(); FUNCTIONS]); 40], false),
        bomb("40 modules of 4,000 loops", &vec![module(&vec![loops(1_999, 999); 3]); 40], false),
        bomb("20,000 loops that carry 1,000 values", &[carrying(20_000)], true),
    ]
}

/// `count` loops, one in the other, each of which changes one of the locals and may begin again: every loop has every
/// local among the values that come from two sides.
fn loops(count: usize, locals: usize) -> Vec<u8> {
    let mut code = vec![];
    for number in 0..count {
        code.extend([0x03, 0x40]);
        code.extend(increment(number % locals));
        code.extend([0x0d, 0]);
    }
    code.extend([0x0b].repeat(count));
    body(locals, &code)
}

/// `count` loops, one after the other, that hand 1,000 values round and begin again with them.
fn carrying(count: usize) -> Vec<u8> {
    let values = [leb(CARRIED), [NUMBER].repeat(CARRIED)].concat();
    let round = [&[0x60], &*values, &*values].concat();
    let types = section(1, &[&[2, 0x60, 0, 0], &*round].concat());
    let mut code = [0x41, 1].repeat(CARRIED);
    for _ in 0..count {
        // `loop (type 1)`, which adds one to a value and, unless that is zero, begins again with all of them.
        code.extend([0x03, 1, 0x41, 1, 0x6a, 0x20, 0, 0x0d, 0, 0x0b]);
    }
    code.extend([0x1a].repeat(CARRIED));
    let code = section(10, &[leb(1), body(1, &code)].concat());
    [b"\0asm\x01\0\0\0".as_slice(), &types, &section(3, &[1, 0]), &code].concat()
}

/// `count` jump tables of `count` targets within `count` blocks, with as many locals.
fn tables(count: usize) -> Vec<u8> {
    let mut code = [0x02, 0x40].repeat(count);
    let targets: Vec<u8> = (0..=count).flat_map(leb).collect();
    for number in 0..count {
        code.extend([0x02, 0x40]);
        code.extend(increment(number));
        code.push(0x0e);
        code.extend(leb(count));
        code.extend(&targets);
        code.push(0x0b);
    }
    code.extend([0x0b].repeat(count));
    body(count, &code)
}

/// A function that does nothing.
fn empty() -> Vec<u8> {
    body(0, &[])
}

/// Adds one to a local and leaves the sum.
fn increment(local: usize) -> Vec<u8> {
    [&[0x20], &*leb(local), &[0x41, 1, 0x6a, 0x22], &*leb(local)].concat()
}

fn body(locals: usize, instructions: &[u8]) -> Vec<u8> {
    let declared = match locals {
        0 => vec![0],
        count => [&[1], &*leb(count), &[NUMBER]].concat(),
    };
    let body = [&declared, instructions, &[0x0b]].concat();
    [leb(body.len()), body].concat()
}

/// A core module of functions without parameters.
fn module(bodies: &[Vec<u8>]) -> Vec<u8> {
    let count = leb(bodies.len());
    let types = [count.clone(), vec![0; bodies.len()]].concat();
    let code = [count, bodies.concat()].concat();
    let sections = [section(1, &[1, 0x60, 0, 0]), section(3, &types), section(10, &code)];
    [b"\0asm\x01\0\0\0".as_slice(), &sections.concat()].concat()
}

/// A component around core modules.
pub fn component(modules: &[Vec<u8>]) -> Vec<u8> {
    let sections = modules.iter().flat_map(|module| section(1, module));
    b"\0asm\x0d\0\x01\0".iter().copied().chain(sections).collect()
}

/// A section of a module or a component.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &*leb(content.len()), content].concat()
}

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = vec![];
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use nagaya::modules::screen::{Error, screen};

    use super::*;

    #[test]
    fn seven_are_refused_at_once_and_one_is_the_compilers() {
        for bomb in all() {
            let screened = screen(&bomb.component.bytes);
            if bomb.passes_the_screen {
                assert_eq!(screened, Ok(()), "{}", bomb.name);
            } else {
                assert!(matches!(screened, Err(Error::Limit { .. })), "{}", bomb.name);
            }
        }
    }
}
