"""What a notebook sees: magics, the answer in its cell, the live panel, the kernel's tools."""
