// SPDX-License-Identifier: GPL-2.0
/*
 * C for the fs/dax layer: what bindgen cannot express (inline functions, macros,
 * trace events), and no more than that needs; see fs_dax_helpers.h.
 */
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/huge_mm.h>
#include <linux/iomap.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/poison.h>
#include <linux/sched/signal.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>
#include <linux/wait.h>
#include <linux/wait_bit.h>
#include <linux/xarray.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>

#include "fs_dax_helpers.h"

/* What include/xarray.rs has as numbers. */
static_assert(XA_CHUNK_SHIFT == 6);

#define CREATE_TRACE_POINTS
#include "rust_pmem_trace.h"

bool rpmem_cpu_has_clwb(void)
{
	return boot_cpu_has(X86_FEATURE_CLWB);
}

bool rpmem_cpu_has_clflushopt(void)
{
	return boot_cpu_has(X86_FEATURE_CLFLUSHOPT);
}

bool rpmem_cpu_has_clflush(void)
{
	return boot_cpu_has(X86_FEATURE_CLFLUSH);
}

unsigned int rpmem_cpu_cache_line(void)
{
	return boot_cpu_data.x86_clflush_size;
}

void rpmem_xa_lock_irq(struct xarray *xa)
{
	xa_lock_irq(xa);
}

void rpmem_xa_unlock_irq(struct xarray *xa)
{
	xa_unlock_irq(xa);
}

bool rpmem_xas_nomem(struct xa_state *xas, struct address_space *mapping)
{
	return xas_nomem(xas, mapping_gfp_mask(mapping) & ~__GFP_HIGHMEM);
}

loff_t rpmem_i_size(const struct inode *inode)
{
	return i_size_read(inode);
}

bool rpmem_mapping_writably_mapped(struct address_space *mapping)
{
	return mapping_writably_mapped(mapping);
}

void rpmem_mapping_set_error(struct address_space *mapping, int err)
{
	mapping_set_error(mapping, err);
}

/* iomap_iter() is not exported; its parts are, but for statistics and warnings. */
int rpmem_iomap_iter(struct iomap_iter *iter, const struct iomap_ops *ops)
{
	int ret;

	if (ops->iomap_next)
		ret = ops->iomap_next(iter, &iter->iomap, &iter->srcmap);
	else
		ret = iomap_iter_next(iter, &iter->iomap, &iter->srcmap,
				      ops->iomap_begin, ops->iomap_end);

	iter->status = 0;
	if (ret > 0) {
		WARN_ON_ONCE(iter->iomap.offset > iter->pos ||
			     iter->iomap.offset + iter->iomap.length <= iter->pos);
		iter->iter_start_pos = iter->pos;
	}
	return ret;
}

bool rpmem_pfns_are_fsdax(unsigned long pfn, unsigned long nr)
{
	unsigned long last = pfn + nr - 1;

	return pfn_valid(pfn) && is_fsdax_page(pfn_to_page(pfn)) &&
	       (nr == 1 || (pfn_valid(last) && is_fsdax_page(pfn_to_page(last))));
}

struct folio *rpmem_pfn_folio(unsigned long pfn)
{
	return page_folio(pfn_to_page(pfn));
}

struct page *rpmem_pfn_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

void *rpmem_pfn_virt(unsigned long pfn)
{
	return page_address(pfn_to_page(pfn));
}

unsigned long rpmem_zero_pfn(unsigned long address)
{
	return zero_pfn(address);
}

unsigned long rpmem_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

unsigned int rpmem_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

bool rpmem_folio_is_locked(struct folio *folio)
{
	return folio_test_locked(folio);
}

/*
 * folio->mapping, or NULL if that word is no pointer to a mapping: while pages are made into a folio,
 * or one is taken apart, what begins a folio may have had the words of a tail page right before, or
 * be about to get them (TAIL_MAPPING, _entire_mapcount, _deferred_list).
 */
struct address_space *rpmem_folio_mapping(struct folio *folio)
{
	struct address_space *mapping = READ_ONCE(folio->mapping);
	unsigned long inside = (unsigned long)mapping - (unsigned long)folio;

	if ((unsigned long)mapping & 3 || mapping == TAIL_MAPPING || inside < sizeof(struct page))
		return NULL;
	return mapping;
}

int rpmem_folio_extra_refs(struct folio *folio)
{
	return folio_ref_count(folio) - folio_mapcount(folio);
}

/*
 * Whether page tables do not explain all references. Never missed while a mapping comes, which takes
 * its reference first, or goes, which gives it back last.
 */
bool rpmem_pfn_is_held(unsigned long pfn)
{
	struct folio *folio = pfn_folio(pfn);
	int mapped = folio_mapcount(folio);

	return folio_ref_count(folio) != mapped || folio_mapcount(folio) != mapped;
}

void rpmem_folio_ref_inc(struct folio *folio)
{
	folio_ref_inc(folio);
}

void rpmem_folio_put(struct folio *folio)
{
	folio_put(folio);
}

/*
 * prep_compound_page() is not exported. zone_device_page_init() calls it, but initialises
 * each page first, which costs twice as much and which pages without a file do not need.
 * So let it make a small folio, for what there is to know about heads, and make that a
 * large one as folio_set_order() and prep_compound_tail() do. What it does besides (a
 * reference, the lock, references to the pgmap) is undone. The lock cannot be contended:
 * nobody knows a page that no file has.
 */
static __always_inline void prep_tail(struct page *tail, unsigned long link)
{
	tail->mapping = TAIL_MAPPING;
	tail->compound_info = link;
	set_page_private(tail, 0);
}

void rpmem_folio_make_compound(struct folio *folio, unsigned int order)
{
	const unsigned int small = 2; /* the least with all that large folios have */
	struct page *head = &folio->page;
	struct dev_pagemap *pgmap = page_pgmap(head);
	unsigned long i, link;

	zone_device_page_init(head, pgmap, min(order, small));
	if (order > small) {
		folio->_flags_1 = (folio->_flags_1 & ~0xffUL) | order;
#ifdef NR_PAGES_IN_LARGE_FOLIO
		folio->_nr_pages = 1U << order;
#endif
		/*
		 * The first tails are prepared already, and their other words hold the
		 * head's counters: only their link may depend on the order. It is the same
		 * for all.
		 */
		for (i = 1; i < 1UL << small; i++)
			set_compound_head(head + i, head, order);
		link = head[1].compound_info;
		/* The compiler does not unroll it. */
		for (; i < 1UL << order; i += 4) {
			prep_tail(head + i, link);
			prep_tail(head + i + 1, link);
			prep_tail(head + i + 2, link);
			prep_tail(head + i + 3, link);
		}
	}
	folio_unlock(folio);
	page_ref_dec(head);
	percpu_ref_put_many(&pgmap->ref, 1UL << min(order, small));
}

bool rpmem_folio_set_dirty(struct folio *folio)
{
	return !folio_test_dirty(folio) && !folio_test_set_dirty(folio);
}

/*
 * For the core, while the folio had no owner, noop_dirty_folio() may have set the flag. The
 * next file's pages would never be reported dirty by unpin_user_pages_dirty_lock().
 */
void rpmem_folio_clear_dirty(struct folio *folio)
{
	if (folio_test_dirty(folio))
		folio_clear_dirty(folio);
}

static DEFINE_MUTEX(rpmem_sharing_mutex);

void rpmem_sharing_lock(void)
{
	mutex_lock(&rpmem_sharing_mutex);
}

void rpmem_sharing_unlock(void)
{
	mutex_unlock(&rpmem_sharing_mutex);
}

struct folio *rpmem_alloc_zero_pmd(void)
{
	return folio_alloc(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN | __GFP_NORETRY,
			   HPAGE_PMD_ORDER);
}

/* Hashed by folio: they guard mapping, index and share of folios of all files. */
#define RPMEM_SHARE_LOCKS 64
static spinlock_t rpmem_share_locks[RPMEM_SHARE_LOCKS] = {
	[0 ... RPMEM_SHARE_LOCKS - 1] = __SPIN_LOCK_UNLOCKED(rpmem_share_locks),
};

static spinlock_t *rpmem_share_lock_of(struct folio *folio)
{
	return &rpmem_share_locks[folio_pfn(folio) % RPMEM_SHARE_LOCKS];
}

unsigned long rpmem_share_lock(struct folio *folio)
{
	unsigned long flags;

	spin_lock_irqsave(rpmem_share_lock_of(folio), flags);
	return flags;
}

void rpmem_share_unlock(struct folio *folio, unsigned long flags)
{
	spin_unlock_irqrestore(rpmem_share_lock_of(folio), flags);
}

bool rpmem_vma_may_map_around(struct vm_area_struct *vma)
{
	return !(vma->vm_flags & (VM_RAND_READ | VM_MAYBE_GUARD)) && !userfaultfd_armed(vma);
}

bool rpmem_vmf_pmd_none(const struct vm_fault *vmf)
{
	return pmd_none(*vmf->pmd);
}

bool rpmem_vmf_pmd_huge(const struct vm_fault *vmf)
{
	return pmd_trans_huge(*vmf->pmd);
}

void rpmem_count_major_fault(void)
{
	count_vm_event(PGMAJFAULT);
}

void rpmem_count_thp_fallback(void)
{
	count_vm_event(THP_FAULT_FALLBACK);
}

/*
 * The core wakes who waits for a page when its last reference goes. But @cb lets faults in, and a
 * page that has been mapped again keeps the references of its mappings: when the others go, nobody
 * is told. C waits until the page is unmapped then, which may be never. So look again now and then,
 * and be content if only mappings are left: the caller removes them.
 */
#define LOOK_AGAIN (HZ / 20)

struct rpmem_alarm {
	struct timer_list timer;
	struct task_struct *task;
};

static void rpmem_alarm_wake(struct timer_list *t)
{
	struct rpmem_alarm *alarm = timer_container_of(alarm, t, timer);

	wake_up_process(alarm->task);
}

static void rpmem_sleep(void (*cb)(struct inode *), struct inode *inode)
{
	struct rpmem_alarm alarm = { .task = current };

	timer_setup_on_stack(&alarm.timer, rpmem_alarm_wake, 0);
	mod_timer(&alarm.timer, jiffies + LOOK_AGAIN);
	if (cb)
		cb(inode);
	else
		schedule();
	timer_delete_sync(&alarm.timer);
	timer_destroy_on_stack(&alarm.timer);
}

static bool rpmem_page_idle(struct page *page)
{
	return dax_page_is_idle(page) || !rpmem_folio_extra_refs(page_folio(page));
}

int rpmem_wait_page_idle(struct page *page, void (*cb)(struct inode *), struct inode *inode)
{
	return ___wait_var_event(page, rpmem_page_idle(page), TASK_INTERRUPTIBLE, 0, 0,
				 rpmem_sleep(cb, inode));
}

void rpmem_wait_page_idle_uninterruptible(struct page *page)
{
	___wait_var_event(page, rpmem_page_idle(page), TASK_UNINTERRUPTIBLE, 0, 0,
			  rpmem_sleep(NULL, NULL));
}

bool rpmem_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

bool rpmem_need_resched(void)
{
	return need_resched();
}

unsigned int rpmem_cpu_id(void)
{
	return raw_smp_processor_id();
}

void rpmem_init_waitqueue(struct wait_queue_head *wq)
{
	init_waitqueue_head(wq);
}

void rpmem_init_wait(struct wait_queue_entry *wait, wait_queue_func_t func)
{
	init_wait(wait);
	wait->func = func;
}

bool rpmem_waitqueue_active(struct wait_queue_head *wq)
{
	return waitqueue_active(wq);
}

/* The _-variants skip the check of the kernel side against usercopy whitelists. */
size_t rpmem_copy_from_iter_flushcache(void *to, size_t bytes, struct iov_iter *i)
{
	return _copy_from_iter_flushcache(to, bytes, i);
}

size_t rpmem_copy_mc_to_iter(void *from, size_t bytes, struct iov_iter *i)
{
	return _copy_mc_to_iter(from, bytes, i);
}

void rpmem_pagefault_disable(void)
{
	pagefault_disable();
}

void rpmem_pagefault_enable(void)
{
	pagefault_enable();
}

void rpmem_trace_fault(struct inode *inode, unsigned long index, unsigned int order,
		       unsigned int flags, unsigned int result)
{
	trace_rpmem_fault(inode, index, order, flags, result);
}

void rpmem_trace_ahead(struct inode *inode, unsigned long index, unsigned long nr, bool write)
{
	trace_rpmem_ahead(inode, index, nr, write);
}

void rpmem_trace_insert(struct inode *inode, unsigned long index, unsigned long old,
			unsigned long new)
{
	trace_rpmem_insert(inode, index, old, new);
}

void rpmem_trace_writeback(struct inode *inode, unsigned long first, unsigned long last)
{
	trace_rpmem_writeback(inode, first, last);
}

void rpmem_trace_run(struct inode *inode, unsigned long index, unsigned long pfn,
		     unsigned long nr)
{
	trace_rpmem_run(inode, index, pfn, nr);
}

void rpmem_trace_writeback_done(struct inode *inode, unsigned long pages, int err)
{
	trace_rpmem_writeback_done(inode, pages, err);
}

void rpmem_trace_unmap(struct inode *inode, unsigned long index, unsigned long nr,
		       bool flushed)
{
	trace_rpmem_unmap(inode, index, nr, flushed);
}

void rpmem_trace_wait(struct inode *inode, unsigned long index)
{
	trace_rpmem_wait(inode, index);
}

void rpmem_trace_busy(struct inode *inode, unsigned long index)
{
	trace_rpmem_busy(inode, index);
}

void rpmem_trace_delete(struct inode *inode, unsigned long first, unsigned long last,
			unsigned long entries)
{
	trace_rpmem_delete(inode, first, last, entries);
}

void rpmem_trace_rw(struct inode *inode, loff_t pos, unsigned long len, unsigned int flags,
		    long ret)
{
	trace_rpmem_rw(inode, pos, len, flags, ret);
}

void rpmem_trace_zero(struct inode *inode, loff_t pos, loff_t len, int err)
{
	trace_rpmem_zero(inode, pos, len, err);
}

void rpmem_trace_unshare(struct inode *inode, loff_t pos, loff_t len, int err)
{
	trace_rpmem_unshare(inode, pos, len, err);
}

void rpmem_trace_hwpoison(struct inode *inode, unsigned long index, bool by_folio, bool locked)
{
	trace_rpmem_hwpoison(inode, index, by_folio, locked);
}
