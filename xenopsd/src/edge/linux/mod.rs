//! Linux side of the host edge: loop devices, block devices, network interfaces.
