/* SPDX-License-Identifier: Apache-2.0 */
/* What an application would call to hand its context over: one to be probed, its twin for comparison. */

#define HAND_OVER(name)                                                                            \
	__attribute__((noinline)) void name(const unsigned char *trace_id,                         \
					    const unsigned char *span_id)                          \
	{                                                                                          \
		__asm__ volatile(#name "_was_here:" : : "r"(trace_id), "r"(span_id) : "memory");   \
	}

HAND_OVER(probed)
HAND_OVER(unprobed)
