/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events of the fs/dax layer, below events/rust_pmem in tracefs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rust_pmem

#if !defined(_RUST_PMEM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _RUST_PMEM_TRACE_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/tracepoint.h>

#define RPMEM_INODE_ENTRY	__field(dev_t, dev) __field(u64, ino)
#define RPMEM_INODE_ASSIGN	\
	__entry->dev = inode->i_sb->s_dev; __entry->ino = inode->i_ino
#define RPMEM_INODE_FMT		"dev %d:%d ino %#llx "
#define RPMEM_INODE_ARGS	MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino

/* A fault was handled; result is a vm_fault_t. */
TRACE_EVENT(rpmem_fault,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned int order,
		 unsigned int flags, unsigned int result),
	TP_ARGS(inode, index, order, flags, result),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(unsigned int, order)
		__field(unsigned int, flags)
		__field(unsigned int, result)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->order = order;
		__entry->flags = flags;
		__entry->result = result;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx order %u flags %#x result %s", RPMEM_INODE_ARGS,
		__entry->index, __entry->order, __entry->flags,
		__print_flags(__entry->result, "|", VM_FAULT_RESULT_TRACE))
);

/* A fault at another page mapped pages at and behind index too. */
TRACE_EVENT(rpmem_ahead,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long nr, bool write),
	TP_ARGS(inode, index, nr, write),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(unsigned long, nr)
		__field(bool, write)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->nr = nr;
		__entry->write = write;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx pages %lu %s", RPMEM_INODE_ARGS,
		__entry->index, __entry->nr, __entry->write ? "write" : "read")
);

/* A fault put an entry (as fs_dax/entry.rs encodes it) into the page cache. */
TRACE_EVENT(rpmem_insert,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long old,
		 unsigned long new),
	TP_ARGS(inode, index, old, new),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(unsigned long, old)
		__field(unsigned long, new)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->old = old;
		__entry->new = new;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx old %#lx new %#lx", RPMEM_INODE_ARGS,
		__entry->index, __entry->old, __entry->new)
);

/* Write-back of first..last begins. */
TRACE_EVENT(rpmem_writeback,
	TP_PROTO(struct inode *inode, unsigned long first, unsigned long last),
	TP_ARGS(inode, first, last),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, first)
		__field(unsigned long, last)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->first = first;
		__entry->last = last;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx..%#lx", RPMEM_INODE_ARGS,
		__entry->first, __entry->last)
);

/* A run of pages was flushed. */
TRACE_EVENT(rpmem_run,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long pfn,
		 unsigned long nr),
	TP_ARGS(inode, index, pfn, nr),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(unsigned long, pfn)
		__field(unsigned long, nr)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->pfn = pfn;
		__entry->nr = nr;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx pfn %#lx pages %lu", RPMEM_INODE_ARGS,
		__entry->index, __entry->pfn, __entry->nr)
);

/* Write-back has ended. */
TRACE_EVENT(rpmem_writeback_done,
	TP_PROTO(struct inode *inode, unsigned long pages, int err),
	TP_ARGS(inode, pages, err),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, pages)
		__field(int, err)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->pages = pages;
		__entry->err = err;
	),
	TP_printk(RPMEM_INODE_FMT "pages %lu err %d", RPMEM_INODE_ARGS,
		__entry->pages, __entry->err)
);

/* A dirty mapping of a folio went away, or a device has written to it. */
TRACE_EVENT(rpmem_unmap,
	TP_PROTO(struct inode *inode, unsigned long index, unsigned long nr,
		 bool flushed),
	TP_ARGS(inode, index, nr, flushed),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(unsigned long, nr)
		__field(bool, flushed)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->nr = nr;
		__entry->flushed = flushed;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx pages %lu%s", RPMEM_INODE_ARGS,
		__entry->index, __entry->nr, __entry->flushed ? " flushed" : "")
);

/* Somebody waits for a locked entry. */
TRACE_EVENT(rpmem_wait,
	TP_PROTO(struct inode *inode, unsigned long index),
	TP_ARGS(inode, index),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx", RPMEM_INODE_ARGS, __entry->index)
);

/* A page is in use by a device: layout breaking has to wait. */
TRACE_EVENT(rpmem_busy,
	TP_PROTO(struct inode *inode, unsigned long index),
	TP_ARGS(inode, index),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx", RPMEM_INODE_ARGS, __entry->index)
);

/* Entries were deleted. */
TRACE_EVENT(rpmem_delete,
	TP_PROTO(struct inode *inode, unsigned long first, unsigned long last,
		 unsigned long entries),
	TP_ARGS(inode, first, last, entries),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, first)
		__field(unsigned long, last)
		__field(unsigned long, entries)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->first = first;
		__entry->last = last;
		__entry->entries = entries;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx..%#lx entries %lu", RPMEM_INODE_ARGS,
		__entry->first, __entry->last, __entry->entries)
);

/* read() or write(); flags are IOMAP_*. */
TRACE_EVENT(rpmem_rw,
	TP_PROTO(struct inode *inode, loff_t pos, unsigned long len, unsigned int flags,
		 long ret),
	TP_ARGS(inode, pos, len, flags, ret),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(loff_t, pos)
		__field(unsigned long, len)
		__field(unsigned int, flags)
		__field(long, ret)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->pos = pos;
		__entry->len = len;
		__entry->flags = flags;
		__entry->ret = ret;
	),
	TP_printk(RPMEM_INODE_FMT "pos %#llx len %#lx %s ret %ld", RPMEM_INODE_ARGS,
		__entry->pos, __entry->len, __entry->flags & 1 ? "write" : "read",
		__entry->ret)
);

DECLARE_EVENT_CLASS(rpmem_range,
	TP_PROTO(struct inode *inode, loff_t pos, loff_t len, int err),
	TP_ARGS(inode, pos, len, err),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(loff_t, pos)
		__field(loff_t, len)
		__field(int, err)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->pos = pos;
		__entry->len = len;
		__entry->err = err;
	),
	TP_printk(RPMEM_INODE_FMT "pos %#llx len %#llx err %d", RPMEM_INODE_ARGS,
		__entry->pos, __entry->len, __entry->err)
);

/* A range was zeroed. */
DEFINE_EVENT(rpmem_range, rpmem_zero,
	TP_PROTO(struct inode *inode, loff_t pos, loff_t len, int err),
	TP_ARGS(inode, pos, len, err)
);

/* A range has blocks of its own now. */
DEFINE_EVENT(rpmem_range, rpmem_unshare,
	TP_PROTO(struct inode *inode, loff_t pos, loff_t len, int err),
	TP_ARGS(inode, pos, len, err)
);

/*
 * Memory failure handling looked for the entry of a page: the file system by index, or the
 * core, where the file system does not care, by folio.
 */
TRACE_EVENT(rpmem_hwpoison,
	TP_PROTO(struct inode *inode, unsigned long index, bool by_folio, bool locked),
	TP_ARGS(inode, index, by_folio, locked),
	TP_STRUCT__entry(
		RPMEM_INODE_ENTRY
		__field(unsigned long, index)
		__field(bool, by_folio)
		__field(bool, locked)
	),
	TP_fast_assign(
		RPMEM_INODE_ASSIGN;
		__entry->index = index;
		__entry->by_folio = by_folio;
		__entry->locked = locked;
	),
	TP_printk(RPMEM_INODE_FMT "index %#lx by %s %s", RPMEM_INODE_ARGS, __entry->index,
		__entry->by_folio ? "folio" : "index",
		__entry->locked ? "locked" : "not mapped")
);

#endif /* _RUST_PMEM_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE rust_pmem_trace
#include <trace/define_trace.h>
