/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functions that loaded libraries import, replaced in the places where the
 * dynamic linker has put their addresses (the global offset tables).  What a
 * library calls within itself is not reached.
 */
#define _GNU_SOURCE /* dl_iterate_phdr */
#include "_publisher.h"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#define JUMP_SLOT R_X86_64_JUMP_SLOT
#define GLOB_DAT R_X86_64_GLOB_DAT
#elif defined(__aarch64__)
#define JUMP_SLOT R_AARCH64_JUMP_SLOT
#define GLOB_DAT R_AARCH64_GLOB_DAT
#else
#error "which relocations does this machine have for imported functions?"
#endif

#define MAX_PLACES 256 /* two or four a library; those beyond are not replaced */

/* What was at a place before us: the function, or the way to the linker while it was never called. */
struct place {
	void **at;
	void *was;
};

static struct place places[MAX_PLACES];
static unsigned int place_count;
static unsigned long long
	seen_loads; /* of libraries into this process, when we looked last; 0 = never */

struct search {
	const struct import *imports;
	unsigned int count;
	bool restore;
};

/* A library, as its dynamic section describes it. */
struct library {
	uintptr_t base, end; /* of its mappings */
	uintptr_t relro, relro_end; /* pages that were made read-only after relocation */
	const ElfW(Sym) * symbols;
	const char *names;
	const ElfW(Rela) * jumps, *others;
	size_t jumps_size, others_size, relative_count;
};

/* glibc adds the base to the addresses in a dynamic section, musl does not. */
static uintptr_t relocated(const struct library *library, uintptr_t base, uintptr_t address)
{
	return address >= library->base ? address : address + base;
}

static void library_dynamic(struct library *library, uintptr_t base, const ElfW(Dyn) * dynamic)
{
	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		uintptr_t address = relocated(library, base, dynamic->d_un.d_ptr);

		switch (dynamic->d_tag) {
		case DT_SYMTAB:
			library->symbols = (void *)address;
			break;
		case DT_STRTAB:
			library->names = (void *)address;
			break;
		case DT_JMPREL:
			library->jumps = (void *)address;
			break;
		case DT_PLTRELSZ:
			library->jumps_size = dynamic->d_un.d_val;
			break;
		case DT_RELA:
			library->others = (void *)address;
			break;
		case DT_RELASZ:
			library->others_size = dynamic->d_un.d_val;
			break;
		case DT_RELACOUNT:
			library->relative_count = dynamic->d_un.d_val;
			break;
		}
	}
}

static bool library_read(struct library *library, const struct dl_phdr_info *info)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), dynamic = 0;

	memset(library, 0, sizeof(*library));
	library->base = UINTPTR_MAX;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + header->p_vaddr, end = start + header->p_memsz;

		if (header->p_type == PT_LOAD) {
			library->base = start < library->base ? start : library->base;
			library->end = end > library->end ? end : library->end;
		} else if (header->p_type == PT_DYNAMIC) {
			dynamic = start;
		} else if (header->p_type == PT_GNU_RELRO) {
			/* as the linker rounds: what shares its page with writable data stays writable */
			library->relro = start & ~(page - 1);
			library->relro_end = end & ~(page - 1);
		}
	}
	if (!dynamic)
		return false;
	library_dynamic(library, info->dlpi_addr, (void *)dynamic);
	return library->symbols && library->names;
}

static bool library_has(const struct library *library, const void *address)
{
	return (uintptr_t)address >= library->base && (uintptr_t)address < library->end;
}

static void place_write(const struct library *library, void **at, void *value)
{
	uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE), page = (uintptr_t)at & ~(size - 1);
	bool guarded = (uintptr_t)at >= library->relro && (uintptr_t)at < library->relro_end;

	if (guarded && mprotect((void *)page, size, PROT_READ | PROT_WRITE))
		return;
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
	if (guarded)
		mprotect((void *)page, size, PROT_READ);
}

static void place_replace(const struct library *library, void **at, const struct import *import)
{
	void *was = *at;

	/* The function, or the library's own stub that looks it up at the first call: anything else is not ours to touch. */
	if (place_count == MAX_PLACES || (was != import->real && !library_has(library, was)))
		return;
	place_write(library, at, import->ours);
	if (*at != import->ours)
		return;
	places[place_count].at = at;
	places[place_count++].was = was;
}

static void place_restore(const struct library *library, void **at, const struct import *import)
{
	/* backwards: where one library has gone and another come, the place was noted twice */
	for (unsigned int i = place_count; i-- > 0 && *at == import->ours;) {
		if (places[i].at == at)
			place_write(library, at, places[i].was);
	}
}

static void relocations_walk(const struct library *library, uintptr_t base, const ElfW(Rela) * rela,
			     size_t count, const struct search *search)
{
	for (size_t i = 0; i < count; i++) {
		unsigned long type = ELF64_R_TYPE(rela[i].r_info);
		const char *name;

		if (type != JUMP_SLOT && type != GLOB_DAT)
			continue;
		name = library->names + library->symbols[ELF64_R_SYM(rela[i].r_info)].st_name;
		for (unsigned int j = 0; j < search->count; j++) {
			const struct import *import = &search->imports[j];
			void **at = (void **)(base + rela[i].r_offset);

			if (strcmp(name, import->name))
				continue;
			if (search->restore)
				place_restore(library, at, import);
			else if (*at != import->ours)
				place_replace(library, at, import);
		}
	}
}

static int library_visit(struct dl_phdr_info *info, size_t size, void *data)
{
	const struct search *search = data;
	struct library library;

	(void)size;
	if (!library_read(&library, info) ||
	    library_has(&library, (void *)(uintptr_t)library_visit))
		return 0;
	/* those without a symbol come first among the others */
	if (library.others && library.others_size / sizeof(ElfW(Rela)) > library.relative_count)
		relocations_walk(&library, info->dlpi_addr, library.others + library.relative_count,
				 library.others_size / sizeof(ElfW(Rela)) - library.relative_count,
				 search);
	if (library.jumps)
		relocations_walk(&library, info->dlpi_addr, library.jumps,
				 library.jumps_size / sizeof(ElfW(Rela)), search);
	return 0;
}

/* Stops at the first library: only the count is wanted. */
static int loads_read(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	*(unsigned long long *)data = info->dlpi_adds;
	return 1;
}

static struct search last_search;

unsigned int imports_replace(const struct import *imports, unsigned int count)
{
	unsigned long long loads = 0;

	dl_iterate_phdr(loads_read, &loads);
	if (loads != seen_loads) {
		seen_loads = loads;
		last_search = (struct search){ imports, count, false };
		dl_iterate_phdr(library_visit, &last_search);
	}
	return place_count;
}

/* Looks for the places once more: a library may have been unloaded. */
void imports_restore(void)
{
	last_search.restore = true;
	if (place_count)
		dl_iterate_phdr(library_visit, &last_search);
	place_count = 0;
	seen_loads = 0;
}
