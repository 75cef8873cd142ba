/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers that grow, and the cache of a column's values. */
#include "_otlp.h"

#include <stdlib.h>
#include <string.h>

#define SETS 1024
#define MAX_BYTES (1024 * 1024) /* of one column's entries */
#define OVERHEAD 32 /* of malloc and struct entry, about */

int buffer_room(struct buffer *buffer, size_t size)
{
	size_t capacity;
	uint8_t *grown;

	if (buffer->capacity - buffer->used >= size)
		return 0;
	capacity = 2 * buffer->capacity + size + 256;
	grown = realloc(buffer->data, capacity);
	if (!grown) {
		PyErr_NoMemory();
		return -1;
	}
	buffer->data = grown;
	buffer->capacity = capacity;
	return 0;
}

void buffer_free(struct buffer *buffer)
{
	free(buffer->data);
	memset(buffer, 0, sizeof(*buffer));
}

static uint64_t mix(uint64_t a, uint64_t b)
{
	__uint128_t product = (__uint128_t)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Multiply and fold, eight bytes a step.  Seeded: records may say what users of the machine want them to. */
uint64_t cache_hash(const uint8_t *key, size_t size, uint64_t seed)
{
	uint64_t hash = seed ^ size, word;

	for (; size > 8; key += 8, size -= 8) {
		memcpy(&word, key, 8);
		hash = mix(hash ^ word, 0x9e3779b97f4a7c15ULL);
	}
	word = 0;
	memcpy(&word, key, size);
	return mix(hash ^ word, 0xd6e8feb86659fd93ULL);
}

static struct slot *set_of(const struct cache *cache, uint64_t hash)
{
	return cache->slots + (hash % SETS) * WAYS;
}

const struct entry *cache_find(const struct cache *cache, uint64_t hash, const uint8_t *key,
			       size_t size, uint64_t now_ns)
{
	struct slot *set;

	if (!cache->slots)
		return NULL;
	set = set_of(cache, hash);
	for (int way = 0; way < WAYS; way++) {
		const struct entry *entry = set[way].entry;

		if (entry && set[way].hash == hash && !memcmp(entry->bytes, key, size))
			return !entry->expires_ns || now_ns < entry->expires_ns ? entry : NULL;
	}
	return NULL;
}

static void drop_entries(struct cache *cache)
{
	for (size_t i = 0; cache->slots && i < SETS * WAYS; i++) {
		free(cache->slots[i].entry);
		cache->slots[i].entry = NULL;
	}
	cache->bytes = 0;
}

static struct slot *choose(struct cache *cache, uint64_t hash, const struct entry *entry,
			   size_t key_size)
{
	struct slot *set = set_of(cache, hash), *free_slot = NULL;

	for (int way = 0; way < WAYS; way++) {
		if (!set[way].entry)
			free_slot = &set[way];
		else if (set[way].hash == hash &&
			 !memcmp(set[way].entry->bytes, entry->bytes, key_size))
			return &set[way]; /* it had expired */
	}
	return free_slot ? free_slot : &set[cache->victim++ % WAYS];
}

int cache_put(struct cache *cache, uint64_t hash, struct entry *entry, size_t key_size)
{
	size_t size = key_size + entry->size + OVERHEAD;
	struct slot *slot;

	if (!cache->slots) {
		cache->slots = calloc(SETS * WAYS, sizeof(*cache->slots));
		if (!cache->slots) {
			free(entry);
			PyErr_NoMemory();
			return -1;
		}
	}
	if (cache->bytes + size > MAX_BYTES)
		drop_entries(cache);
	slot = choose(cache, hash, entry, key_size);
	if (slot->entry) {
		cache->bytes -= key_size + slot->entry->size + OVERHEAD;
		free(slot->entry);
	}
	slot->hash = hash;
	slot->entry = entry;
	cache->bytes += size;
	return 0;
}

void cache_free(struct cache *cache)
{
	drop_entries(cache);
	free(cache->slots);
	cache->slots = NULL;
}
