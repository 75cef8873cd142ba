# SPDX-License-Identifier: Apache-2.0
"""Write the C source of the cffi module `ebpftrace.kernel._libbpf` (run by CMake at build time).

API mode: the C compiler checks every declaration below against libbpf's own headers.
"""

from __future__ import annotations

import sys

import cffi

DECLARATIONS = """
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef uint64_t __u64;
typedef int32_t __s32;

/* errors and versions */
int libbpf_strerror(int err, char *buf, size_t size);
const char *libbpf_version_string(void);

/* objects */
struct bpf_object;
struct bpf_program;
struct bpf_map;
struct bpf_link;
struct btf;
struct bpf_object_open_opts {
    size_t sz;
    const char *object_name;
    ...;
};
struct bpf_object *bpf_object__open_mem(const void *buf, size_t size, const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct btf *bpf_object__btf(const struct bpf_object *obj);

struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
const char *bpf_program__name(const struct bpf_program *prog);
const char *bpf_program__section_name(const struct bpf_program *prog);
int bpf_program__type(const struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
bool bpf_program__autoload(const struct bpf_program *prog);
bool bpf_program__autoattach(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
struct bpf_link *bpf_program__attach(const struct bpf_program *prog);
int bpf_link__destroy(struct bpf_link *link);
int bpf_link__fd(const struct bpf_link *link);
int bpf_iter_create(int link_fd);

struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_autocreate(struct bpf_map *map, bool autocreate);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
__u32 bpf_map__max_entries(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
const void *bpf_map__initial_value(struct bpf_map *map, size_t *psize);

/* maps by file descriptor */
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_freeze(int fd);
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);
int libbpf_num_possible_cpus(void);

enum bpf_map_type {
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_HASH_OF_MAPS, BPF_MAP_TYPE_PERF_EVENT_ARRAY,
    BPF_MAP_TYPE_RINGBUF, ...
};
enum bpf_attach_type { BPF_TRACE_RAW_TP, BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, ... };
#define BPF_F_MMAPABLE ...
#define BPF_NOEXIST ...
#define BPF_ANY ...

/* BTF */
struct btf_type {
    __u32 name_off;
    __u32 info;
    __u32 size; /* or the type referred to: a union in the kernel's header */
    ...;
};
struct btf_member { __u32 name_off; __u32 type; __u32 offset; };
struct btf_array { __u32 type; __u32 index_type; __u32 nelems; };
struct btf_enum { __u32 name_off; __s32 val; };
struct btf_var_secinfo { __u32 type; __u32 offset; __u32 size; };
struct btf *btf__load_vmlinux_btf(void);
void btf__free(struct btf *btf);
__s32 btf__find_by_name(const struct btf *btf, const char *type_name);
__s32 btf__find_by_name_kind(const struct btf *btf, const char *type_name, __u32 kind);
const struct btf_type *btf__type_by_id(const struct btf *btf, __u32 id);
int64_t btf__resolve_size(const struct btf *btf, __u32 type_id);
const char *btf__name_by_offset(const struct btf *btf, __u32 offset);

/* ours */
void ebt_log_install(void);
size_t ebt_log_take(char *text, size_t size);
struct ebt_reader;
struct ebt_batch {
    const void *data;
    size_t size;
    unsigned long long records;
};
#define EBT_BATCH_BYTES ...
struct ebt_reader *ebt_reader_new(void);
int ebt_reader_add(struct ebt_reader *reader, int map_fd, unsigned int ring);
int ebt_reader_add_perf(struct ebt_reader *reader, int map_fd, unsigned int ring, size_t pages);
unsigned long long ebt_reader_lost(const struct ebt_reader *reader, unsigned int ring);
int ebt_reader_remove(struct ebt_reader *reader, unsigned int ring);
int ebt_reader_wait(struct ebt_reader *reader, int interval_ms, int timeout_ms, struct ebt_batch *batch);
int ebt_reader_wake(struct ebt_reader *reader);
void ebt_reader_free(struct ebt_reader *reader);
void ebt_name_thread(const char *name);
void ebt_link_forget(struct bpf_link *link);
int ebt_probe_tracing(const char *function, enum bpf_attach_type type);
int ebt_probe_helper(int helper);
int ebt_run_once(int prog_fd, unsigned long long argument);
int ebt_map_create(enum bpf_map_type type, const char *name, unsigned int key_size, unsigned int value_size,
                   unsigned int max_entries, unsigned int flags);

/* the layout that user space and BPF share */
struct ebt_slot {
    __u8 trace_id[16];
    __u8 span_id[8];
    __u8 valid;
    __u8 trace_flags;
    __u16 attrs_size;
    __u32 mask;
    __u32 tid;
    __u32 generation;
    __u64 stamp_addr;
    __u64 stamp;
    __u64 claimed_ns;
};
struct ebt_line {
    __u64 owner;
    __u64 switches;
    __u64 on_since;
    __u64 times[9];
    __u64 lost;
    ...;
};
#define EBT_TABLE_SLOTS ...
#define EBT_PUBLISHER_WORDS ...
#define EBT_DROPS ...
"""

INCLUDES = """
#include "_reader.h"
#include "ebpftrace_abi.h"
"""


def main(output: str) -> None:
    """Write the module's C source to `output`."""
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("ebpftrace.kernel._libbpf", INCLUDES, py_limited_api=True)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1])
