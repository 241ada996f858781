// SPDX-License-Identifier: GPL-2.0
/*
 * C: what bindgen cannot express (inline functions, macros, attributes, parameters),
 * and no more than that needs; see helpers.h.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/dax.h>
#include <linux/ioport.h>
#include <linux/kstrtox.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/numa.h>
#include <linux/sched.h>
#include <linux/set_memory.h>
#include <linux/sysfs.h>

#include "helpers.h"

/* ---- the driver (drivers/pmem) ------------------------------------------ */

/*
 * Module parameters. The module! macro knows neither strings nor parameters that
 * can be changed at run time, so all of them are C's, read through
 * include/module_param.rs.
 */
char *rpmem_param_phys_addr;
module_param_named(phys_addr, rpmem_param_phys_addr, charp, 0444);
MODULE_PARM_DESC(phys_addr, "start of the one range to use instead of all memmap=nn!ss ranges, for memory reserved with memmap=nn$ss (bytes; 0x, K, M, G, T accepted; a multiple of 2M; needs size=)");

char *rpmem_param_size;
module_param_named(size, rpmem_param_size, charp, 0444);
MODULE_PARM_DESC(size, "length of the range at phys_addr= (bytes; 0x, K, M, G, T accepted; a multiple of 2M)");

bool rpmem_param_fs_dax = true;
module_param_named(fs_dax, rpmem_param_fs_dax, bool, 0444);
MODULE_PARM_DESC(fs_dax, "handle DAX of file systems on our devices in Rust (default: Y); N leaves it to the kernel's fs/dax.c");

bool rpmem_param_flush_on_unmap = true;
module_param_named(flush_on_unmap, rpmem_param_flush_on_unmap, bool, 0644);
MODULE_PARM_DESC(flush_on_unmap, "write dirty cache lines back when a DAX mapping is unmapped (default: Y; may be changed at run time)");

unsigned int rpmem_param_fault_around = 16;
module_param_named(fault_around, rpmem_param_fault_around, uint, 0644);
MODULE_PARM_DESC(fault_around, "pages that a DAX read fault maps ahead at most, if faults come in sequence; elsewhere its aligned block of 4, from 4 on (default: 16; 0: none; up to 64; may be changed at run time)");

unsigned int rpmem_param_fault_around_write;
module_param_named(fault_around_write, rpmem_param_fault_around_write, uint, 0644);
MODULE_PARM_DESC(fault_around_write, "pages that a DAX write fault maps ahead at most, if faults come in sequence; stores to them do not change the file's times (default: 0, none; up to 64; may be changed at run time)");

/*
 * The dax/write_cache attribute of a disk, as nd_pmem has it: whether flushes of
 * DAX mappings write CPU cache lines back. N is for platforms whose caches are
 * persistent (eADR).
 */
static struct dax_device *rpmem_disk_dax(struct device *dev)
{
	u64 start_off;

	return fs_dax_get_by_bdev(dev_to_disk(dev)->part0, &start_off, NULL, NULL);
}

static ssize_t write_cache_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct dax_device *dax_dev = rpmem_disk_dax(dev);
	ssize_t len;

	if (!dax_dev)
		return -ENXIO;
	len = sysfs_emit(buf, "%d\n", dax_write_cache_enabled(dax_dev));
	put_dax(dax_dev);
	return len;
}

static ssize_t write_cache_store(struct device *dev, struct device_attribute *attr,
				 const char *buf, size_t len)
{
	struct dax_device *dax_dev;
	bool write_cache;
	int rc = kstrtobool(buf, &write_cache);

	if (rc)
		return rc;
	dax_dev = rpmem_disk_dax(dev);
	if (!dax_dev)
		return -ENXIO;
	dax_write_cache(dax_dev, write_cache);
	put_dax(dax_dev);
	return len;
}
static DEVICE_ATTR_RW(write_cache);

static struct attribute *rpmem_dax_attributes[] = {
	&dev_attr_write_cache.attr,
	NULL,
};

static const struct attribute_group rpmem_dax_group = {
	.name = "dax",
	.attrs = rpmem_dax_attributes,
};

static const struct attribute_group *rpmem_disk_groups[] = {
	&rpmem_dax_group,
	NULL,
};

struct gendisk *rpmem_alloc_disk(struct queue_limits *lim, int nid)
{
	return blk_alloc_disk(lim, nid);
}

int rpmem_add_disk(struct gendisk *disk)
{
	return device_add_disk(NULL, disk, rpmem_disk_groups);
}

void rpmem_get_disk(struct gendisk *disk)
{
	get_device(disk_to_dev(disk));
}

struct kernfs_node *rpmem_disk_attribute(struct gendisk *disk, const char *name)
{
	return sysfs_get_dirent(disk_to_dev(disk)->kobj.sd, name);
}

void rpmem_sysfs_notify(struct kernfs_node *kn)
{
	sysfs_notify_dirent(kn);
}

void rpmem_sysfs_put(struct kernfs_node *kn)
{
	sysfs_put(kn);
}

void *rpmem_page_virt(struct page *page)
{
	return page_address(page);
}

bool rpmem_page_poisoned(unsigned long pfn)
{
	return PageHWPoison(pfn_to_page(pfn));
}

void rpmem_set_page_poisoned(unsigned long pfn)
{
	SetPageHWPoison(pfn_to_page(pfn));
}

void rpmem_clear_page_poison(unsigned long pfn)
{
	if (TestClearPageHWPoison(pfn_to_page(pfn)))
		clear_mce_nospec(pfn);
}

size_t rpmem_sizeof_page(void)
{
	return sizeof(struct page);
}

bool rpmem_request_mem_region(u64 start, u64 len, const char *name)
{
	return request_mem_region(start, len, name);
}

void rpmem_release_mem_region(u64 start, u64 len)
{
	release_mem_region(start, len);
}

int rpmem_phys_to_node(u64 start)
{
	return numa_map_to_online_node(phys_to_target_node(start));
}

void rpmem_cond_resched(void)
{
	cond_resched();
}
