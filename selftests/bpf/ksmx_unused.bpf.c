// SPDX-License-Identifier: GPL-2.0
/*
 * Built for a kernel with one member more, which it leaves alone, and without
 * most of those of this one, in another order.
 */
#include "ksmx_layout.h"

struct ksm_ext_ops {
	u64 foresight;
	char name[KSM_EXT_NAME_LEN];
	s32 (*scan)(const struct ksm_ext_scan_ctx *ctx);
};

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_unused = {
	.scan = (void *)layout_scan,
	.name = "ksmx_unused",
};
