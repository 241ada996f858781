/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads: the headers the kernel crate does not bind. Which names are
 * taken from them is written in bindgen_parameters.
 */
#include <linux/hrtimer_types.h>

#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/dax.h>
#include <linux/iomap.h>
#include <linux/ioport.h>
#include <linux/libnvdimm.h>
#include <linux/memremap.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/rmap.h>
#include <linux/string.h>
#include <linux/uio.h>

#include "fs_dax_helpers.h"
#include "helpers.h"
