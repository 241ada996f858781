/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C that bindgen cannot express: inline functions, macros, module parameters and
 * static tables. Everything here is named rpmem_* and implemented in helpers.c.
 */
#ifndef _RPMEM_HELPERS_H
#define _RPMEM_HELPERS_H

#include <linux/blkdev.h>
#include <linux/types.h>

struct kernfs_node;

/* ---- the driver (drivers/pmem) ------------------------------------------ */

/* Module parameters: the variables behind /sys/module/rust_pmem/parameters. */
extern char *rpmem_param_phys_addr;
extern char *rpmem_param_size;
extern bool rpmem_param_fs_dax;
extern bool rpmem_param_flush_on_unmap;
extern unsigned int rpmem_param_fault_around;
extern unsigned int rpmem_param_fault_around_write;

/* linux/blkdev.h */
struct gendisk *rpmem_alloc_disk(struct queue_limits *lim, int nid);
int rpmem_add_disk(struct gendisk *disk);
void rpmem_get_disk(struct gendisk *disk);
struct kernfs_node *rpmem_disk_attribute(struct gendisk *disk, const char *name);

/* linux/sysfs.h */
void rpmem_sysfs_notify(struct kernfs_node *kn);
void rpmem_sysfs_put(struct kernfs_node *kn);

/* linux/bvec.h */
void *rpmem_page_virt(struct page *page);

/* linux/memremap.h, linux/set_memory.h, linux/page-flags.h */
bool rpmem_page_poisoned(unsigned long pfn);
void rpmem_set_page_poisoned(unsigned long pfn);
void rpmem_clear_page_poison(unsigned long pfn);
size_t rpmem_sizeof_page(void);

/* linux/ioport.h, linux/numa.h */
bool rpmem_request_mem_region(u64 start, u64 len, const char *name);
void rpmem_release_mem_region(u64 start, u64 len);
int rpmem_phys_to_node(u64 start);

/* linux/sched.h */
void rpmem_cond_resched(void);

#endif /* _RPMEM_HELPERS_H */
