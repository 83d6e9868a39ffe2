// SPDX-License-Identifier: GPL-2.0
/* Built for a kernel with one member more, and uses it. */
#include "ksmx_layout.h"

struct ksm_ext_ops {
	s32 (*scan)(const struct ksm_ext_scan_ctx *ctx);
	u32 foresight;
	char name[KSM_EXT_NAME_LEN];
};

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_newer = {
	.scan = (void *)layout_scan,
	.foresight = 1,
	.name = "ksmx_newer",
};
