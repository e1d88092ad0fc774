"""The training job: loop, step, state, optimizers, preemption, throughput and profiling."""
