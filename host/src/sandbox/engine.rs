//! The one place that builds wasmtime's configuration: the host and its compile child call the same function and
//! differ only in the allocator and in `parallel_compilation`.
//!
//! Invariants: `every_switch_stands_as_decided`, `every_total_is_slots_times_the_cap_of_a_component`,
//! `the_reset_decides_what_stays_resident`.

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    Strategy, WasmFeatures,
};

use super::machine::Reset;

/// Memories of one component; `QuickJS` builds have 2 or 3.
pub(super) const MEMORIES: u32 = 4;
/// Core instances of one component; a Python build with its WASI stubbed out has 38.
pub(super) const CORE_INSTANCES: u32 = 64;
/// Tables of one component; `QuickJS` builds have 3.
pub(super) const TABLES: u32 = 4;
/// Elements of one table: one for each function whose address is taken; Go with `k8s.io/api` has 12,324. The pool
/// reserves 8 bytes for each, 1 MiB of address space a slot over the four tables, and of these pages only what a guest
/// has touched is ever in memory, at most 16 KiB a table after its run.
pub(super) const TABLE_ELEMENTS: usize = 32_768;

/// How guests get their memories and stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// From slots that are reserved at start: twice the runs per second.
    #[default]
    Pooling,
    /// From the operating system, for each run anew: the fallback, should the pool ever be at fault.
    OnDemand,
}

/// Who runs or compiles with the engine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// The host.
    Host {
        /// How guests get their memories.
        allocation: Allocation,
        /// Runs at the same time.
        slots: u32,
        /// The largest memory of a guest.
        memory_ceiling: usize,
        /// How a used slot is cleaned.
        reset: Reset,
    },
    /// The child process that compiles: under its address-space limit there is no room for a pool.
    CompileChild,
}

/// The engine of `role`.
pub(super) fn engine(role: Role) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        // Time is counted in ticks; fuel would cost more and gives no time.
        .epoch_interruption(true)
        .consume_fuel(false)
        // Winch's code is slow and has had escapes.
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        // The difference between the two is what host functions may use.
        .max_wasm_stack(512 << 10)
        .async_stack_size(1 << 20)
        // No bytes of a stack pass from one team to another.
        .async_stack_zeroing(true)
        // The world has no `async func`, and an empty call costs a quarter without.
        .concurrency_support(false)
        // Smaller files; traps keep their backtraces by the address map.
        .native_unwind_info(false)
        .debug_symbols(false)
        // Named here, so that no crate feature that a dependency switches on can bring one back.
        .wasm_features(refused(), false);
    match role {
        Role::CompileChild => {
            config.parallel_compilation(true);
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        }
        Role::Host { allocation, slots, memory_ceiling, reset } => {
            config.parallel_compilation(false);
            config.allocation_strategy(match allocation {
                Allocation::OnDemand => InstanceAllocationStrategy::OnDemand,
                Allocation::Pooling => pool(slots, memory_ceiling, reset).into(),
            });
        }
    }
    Engine::new(&config)
}

/// The proposals that no guest may use: more surface, and no supported language needs them.
fn refused() -> WasmFeatures {
    WasmFeatures::MEMORY64
        | WasmFeatures::THREADS
        | WasmFeatures::SHARED_EVERYTHING_THREADS
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::GC
        | WasmFeatures::GC_TYPES
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::STACK_SWITCHING
        | WasmFeatures::CM_ASYNC
}

/// Every total is `slots` times the cap of one component: `slots` permits guarantee as many instances.
fn pool(slots: u32, memory_ceiling: usize, reset: Reset) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_stacks(slots)
        .max_memories_per_component(MEMORIES)
        .total_memories(slots.saturating_mul(MEMORIES))
        .max_core_instances_per_component(CORE_INSTANCES)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES))
        .max_tables_per_component(TABLES)
        .total_tables(slots.saturating_mul(TABLES))
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(memory_ceiling)
        .max_memories_per_module(1)
        // What stays resident is overwritten instead of unmapped; memset must reach beyond the initial memory.
        .linear_memory_keep_resident(match reset {
            Reset::Scan => 512 << 10,
            Reset::Memset => 1 << 20,
        })
        .table_keep_resident(16 << 10)
        .async_stack_keep_resident(64 << 10)
        // Batches lose throughput once memory stays resident.
        .decommit_batch_size(1)
        .pagemap_scan(match reset {
            Reset::Scan => Enabled::Auto,
            Reset::Memset => Enabled::No,
        });
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: usize = 64 << 20;

    fn host(allocation: Allocation, reset: Reset) -> Engine {
        engine(Role::Host { allocation, slots: 3, memory_ceiling: CEILING, reset }).unwrap()
    }

    #[test]
    fn every_switch_stands_as_decided() {
        let pooled = host(Allocation::Pooling, Reset::Memset);
        let child = engine(Role::CompileChild).unwrap();
        for engine in [&pooled, &host(Allocation::OnDemand, Reset::Memset), &child] {
            assert!(engine.get_epoch_interruption() && !engine.get_consume_fuel());
            assert!(matches!(engine.get_strategy(), Some(Strategy::Cranelift)));
            assert!(matches!(engine.get_cranelift_opt_level(), Some(OptLevel::Speed)));
            assert_eq!(engine.get_max_wasm_stack(), 512 << 10);
            assert_eq!(engine.get_async_stack_size(), 1 << 20);
            assert!(engine.get_async_stack_zeroing() && !engine.get_concurrency_support());
            assert_eq!(engine.get_memory_reservation(), 4 << 30);
            assert!(engine.get_signals_based_traps() && engine.get_generate_address_map());
            assert!(!engine.get_debug_symbols() && !engine.get_shared_memory());
            assert_eq!(engine.get_native_unwind_info(), Some(false));
            let features = engine.get_wasm_features();
            for off in [
                WasmFeatures::MEMORY64,
                WasmFeatures::THREADS,
                WasmFeatures::EXCEPTIONS,
                WasmFeatures::GC,
                WasmFeatures::RELAXED_SIMD,
                WasmFeatures::STACK_SWITCHING,
                WasmFeatures::CM_ASYNC,
            ] {
                assert!(!features.intersects(off), "{off:?} is on");
            }
            let needed = WasmFeatures::SIMD | WasmFeatures::TAIL_CALL | WasmFeatures::MULTI_MEMORY;
            assert!(features.contains(needed), "{features:?}");
        }
        assert!(!pooled.get_parallel_compilation() && child.get_parallel_compilation());
        assert!(child.get_pooling_config().is_none());
        assert!(host(Allocation::OnDemand, Reset::Scan).get_pooling_config().is_none());
    }

    #[test]
    fn every_total_is_slots_times_the_cap_of_a_component() {
        let engine = host(Allocation::Pooling, Reset::Memset);
        let pool = engine.get_pooling_config().unwrap();
        assert_eq!(pool.get_total_component_instances(), 3);
        assert_eq!(pool.get_total_stacks(), 3);
        for (total, cap, expected) in [
            (pool.get_total_memories(), pool.get_max_memories_per_component(), 4),
            (pool.get_total_core_instances(), pool.get_max_core_instances_per_component(), 64),
            (pool.get_total_tables(), pool.get_max_tables_per_component(), 4),
        ] {
            assert_eq!((total, cap), (3 * expected, expected));
        }
        assert_eq!(pool.get_table_elements(), 32_768);
        assert_eq!(pool.get_max_memory_size(), CEILING);
        assert_eq!(pool.get_max_memories_per_module(), 1);
        assert_eq!(pool.get_table_keep_resident(), 16 << 10);
        assert_eq!(pool.get_async_stack_keep_resident(), 64 << 10);
        assert_eq!(pool.get_decommit_batch_size(), 1);
    }

    #[test]
    fn the_reset_decides_what_stays_resident() {
        for (reset, scan, resident) in
            [(Reset::Scan, "Auto", 512 << 10), (Reset::Memset, "No", 1 << 20)]
        {
            let engine = host(Allocation::Pooling, reset);
            let pool = engine.get_pooling_config().unwrap();
            assert_eq!(format!("{:?}", pool.get_pagemap_scan()), scan);
            assert_eq!(pool.get_memory_keep_resident(), resident);
        }
    }
}
