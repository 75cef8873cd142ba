/* SPDX-License-Identifier: Apache-2.0 */
/* One side of a game over two pipes: each ball is one context switch when both sides share a CPU. */
#include <unistd.h>

int play(int from, int to, int balls)
{
	char ball = 0;

	for (int i = 0; i < balls; i++)
		if (read(from, &ball, 1) != 1 || write(to, &ball, 1) != 1)
			return -1;
	return 0;
}
