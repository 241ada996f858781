/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C that bindgen cannot express, for the fs/dax layer: inline functions and macros.
 * Everything here is named rpmem_* and implemented in fs_dax_helpers.c.
 */
#ifndef _RPMEM_FS_DAX_HELPERS_H
#define _RPMEM_FS_DAX_HELPERS_H

#include <linux/fs.h>
#include <linux/iomap.h>
#include <linux/kallsyms.h>
#include <linux/mm.h>
#include <linux/types.h>
#include <linux/xarray.h>

/* asm/cpufeature.h */
bool rpmem_cpu_has_clwb(void);
bool rpmem_cpu_has_clflushopt(void);
bool rpmem_cpu_has_clflush(void);
unsigned int rpmem_cpu_cache_line(void);

/* linux/xarray.h */
void rpmem_xa_lock_irq(struct xarray *xa);
void rpmem_xa_unlock_irq(struct xarray *xa);
bool rpmem_xas_nomem(struct xa_state *xas, struct address_space *mapping);

/* linux/fs.h, linux/pagemap.h */
loff_t rpmem_i_size(const struct inode *inode);
bool rpmem_mapping_writably_mapped(struct address_space *mapping);
void rpmem_mapping_set_error(struct address_space *mapping, int err);

/* linux/fs.h: bitwise types that bindgen cannot read */
enum {
	RPMEM_IOCB_NOWAIT = (__force int)IOCB_NOWAIT,
	RPMEM_IOCB_ATOMIC = (__force int)IOCB_ATOMIC,
};

/* linux/kallsyms.h */
enum { RPMEM_KSYM_SYMBOL_LEN = KSYM_SYMBOL_LEN };

/* linux/iomap.h */
int rpmem_iomap_iter(struct iomap_iter *iter, const struct iomap_ops *ops);

/* linux/mm.h, linux/memremap.h */
bool rpmem_pfns_are_fsdax(unsigned long pfn, unsigned long nr);
struct folio *rpmem_pfn_folio(unsigned long pfn);
struct page *rpmem_pfn_page(unsigned long pfn);
void *rpmem_pfn_virt(unsigned long pfn);
unsigned long rpmem_zero_pfn(unsigned long address);
unsigned long rpmem_folio_pfn(struct folio *folio);
unsigned int rpmem_folio_order(struct folio *folio);
bool rpmem_folio_is_locked(struct folio *folio);
struct address_space *rpmem_folio_mapping(struct folio *folio);
int rpmem_folio_extra_refs(struct folio *folio);
bool rpmem_pfn_is_held(unsigned long pfn);
void rpmem_folio_ref_inc(struct folio *folio);
void rpmem_folio_put(struct folio *folio);
void rpmem_folio_make_compound(struct folio *folio, unsigned int order);
bool rpmem_folio_set_dirty(struct folio *folio);
void rpmem_folio_clear_dirty(struct folio *folio);
struct folio *rpmem_alloc_zero_pmd(void);
void rpmem_sharing_lock(void);
void rpmem_sharing_unlock(void);
unsigned long rpmem_share_lock(struct folio *folio);
void rpmem_share_unlock(struct folio *folio, unsigned long flags);
bool rpmem_vma_may_map_around(struct vm_area_struct *vma);
bool rpmem_vmf_pmd_none(const struct vm_fault *vmf);
bool rpmem_vmf_pmd_huge(const struct vm_fault *vmf);

/* linux/vmstat.h */
void rpmem_count_major_fault(void);
void rpmem_count_thp_fallback(void);

/* linux/wait_bit.h, linux/sched.h */
int rpmem_wait_page_idle(struct page *page, void (*cb)(struct inode *), struct inode *inode);
void rpmem_wait_page_idle_uninterruptible(struct page *page);
bool rpmem_fatal_signal_pending(void);
bool rpmem_need_resched(void);
unsigned int rpmem_cpu_id(void);

/* linux/wait.h */
void rpmem_init_waitqueue(struct wait_queue_head *wq);
void rpmem_init_wait(struct wait_queue_entry *wait, wait_queue_func_t func);
bool rpmem_waitqueue_active(struct wait_queue_head *wq);

/* linux/uio.h */
size_t rpmem_copy_from_iter_flushcache(void *to, size_t bytes, struct iov_iter *i);
size_t rpmem_copy_mc_to_iter(void *from, size_t bytes, struct iov_iter *i);

void rpmem_pagefault_disable(void);
void rpmem_pagefault_enable(void);

/* rust_pmem_trace.h: one function per event */
void rpmem_trace_fault(struct inode *inode, unsigned long index, unsigned int order,
		       unsigned int flags, unsigned int result);
void rpmem_trace_ahead(struct inode *inode, unsigned long index, unsigned long nr, bool write);
void rpmem_trace_insert(struct inode *inode, unsigned long index, unsigned long old,
			unsigned long new);
void rpmem_trace_writeback(struct inode *inode, unsigned long first, unsigned long last);
void rpmem_trace_run(struct inode *inode, unsigned long index, unsigned long pfn,
		     unsigned long nr);
void rpmem_trace_writeback_done(struct inode *inode, unsigned long pages, int err);
void rpmem_trace_unmap(struct inode *inode, unsigned long index, unsigned long nr,
		       bool flushed);
void rpmem_trace_wait(struct inode *inode, unsigned long index);
void rpmem_trace_busy(struct inode *inode, unsigned long index);
void rpmem_trace_delete(struct inode *inode, unsigned long first, unsigned long last,
			unsigned long entries);
void rpmem_trace_rw(struct inode *inode, loff_t pos, unsigned long len, unsigned int flags,
		    long ret);
void rpmem_trace_zero(struct inode *inode, loff_t pos, loff_t len, int err);
void rpmem_trace_unshare(struct inode *inode, loff_t pos, loff_t len, int err);
void rpmem_trace_hwpoison(struct inode *inode, unsigned long index, bool by_folio, bool locked);

#endif /* _RPMEM_FS_DAX_HELPERS_H */
