#pragma once
#include "pysora/adaln.h"
#include "pysora/gate_residual.h"
#include "pysora/noise.h"
#include "pysora/norm_silu.h"
#include "pysora/patch_embed.h"
#include "pysora/sampler_step.h"
#include "pysora/spacetime_attention.h"
