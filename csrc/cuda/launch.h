#pragma once

// The one way to name dynamic shared memory, and the one way to launch a kernel; a template's name in parentheses.
#define PYSORA_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define PYSORA_LAUNCH(kernel, grid, block, shared, stream, ...) (kernel)<<<grid, block, shared, stream>>>(__VA_ARGS__)
