// SPDX-License-Identifier: GPL-2.0
/* Built for a kernel where names are longer. */
#include "ksmx_layout.h"

struct ksm_ext_ops {
	s32 (*scan)(const struct ksm_ext_scan_ctx *ctx);
	char name[KSM_EXT_NAME_LEN * 2];
};

SEC(".struct_ops.link")
struct ksm_ext_ops ksmx_resized = {
	.scan = (void *)layout_scan,
	.name = "ksmx_resized",
};
