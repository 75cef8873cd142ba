/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that is not Python's, and calls into Python now and then. */
#include <pthread.h>

struct calls {
	void (*callback)(int number);
	void (*between)(void); /* called without Python's lock, by a function that takes none */
	int count;
};

static void *work(void *arg)
{
	struct calls *calls = arg;

	for (int number = 0; number < calls->count; number++) {
		calls->callback(number);
		if (calls->between)
			calls->between();
	}
	return NULL;
}

int call_from_thread(void (*callback)(int number), void (*between)(void), int count)
{
	struct calls calls = { callback, between, count };
	pthread_t thread;

	return pthread_create(&thread, NULL, work, &calls) || pthread_join(thread, NULL);
}
